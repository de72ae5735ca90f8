"""Starts ranks as torchrun does, without what torchrun opens to the network on one host, and with the ranks' exit code.

torchrun on one host listens on all of its interfaces, and unpickles what it is sent there.
"""

import logging
import os
import signal
import socket
import stat
import sys
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher import api

from rankmixer_dist.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError, one_line
from rankmixer_dist.parallel.meeting import LOOPBACK, require_address
from rankmixer_dist.parallel.preemption import STOP_SIGNALS
from rankmixer_dist.parallel.stop_guard import GRACE

_FINAL = (EXIT_USER_ERROR, EXIT_PREEMPTED)
"""Exit codes of ranks after which a new start would end alike, or was asked not to be."""
_SILENT_S = 60
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What is passed on to the ranks: torchrun's own, and SIGUSR1, which stops a run as SIGTERM does."""


def launch(arguments: list[str], *, verbs: Collection[str] = ()) -> NoReturn:
    """Starts ranks with torchrun's arguments and ends with their exit code: that of the first rank to fail, where one
    ended by a mistake of the user or because it was asked to stop that code, and 128 + the signal that ended this.

    On one host (`--nnodes 1`, the default) the launcher meets its ranks in a file without a name, and the ranks each
    other on the loopback. Several hosts meet at `--rdzv_endpoint`. A rank's mistake is not started again, whatever
    `--max_restarts` says.

    Args:
        verbs: names that stand, in the place of a script, for the verbs of this package.

    Raises:
        UserError: several hosts and no place to meet, or an option's value that makes no sense.
    """
    args = torchrun.parse_args(arguments)
    if args.training_script in verbs:
        args.training_script_args = [args.training_script, *args.training_script_args]
        args.module, args.training_script = True, __package__.partition(".")[0]
        if not Path(__file__).parents[2].samefile("."):
            # Else `-m` would look in the working directory first, where another copy of a package may lie.
            os.environ["PYTHONSAFEPATH"] = "1"
    _settle(args, one_host=_hosts(args) == (1, 1))
    # It tells of a rank what the ranks, or the report below, tell anyway.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    config, command, command_args = torchrun.config_from_args(args)
    try:
        api.LocalElasticAgent = _Agent  # type: ignore[misc]  # launch_agent takes no agent from outside
        api.elastic_launch(config, command)(*command_args)
    except ChildFailedError as error:
        code = _code_of(error)
        if code not in _FINAL:
            print(error, file=sys.stderr)
        sys.exit(code)
    except SignalException as stop:
        if _Agent.killed:
            print(f"error: {_unsaved(_Agent.killed, stop.sigval)}", file=sys.stderr)
        if set(_Agent.ended) == {0}:
            sys.exit(0)  # it came in the last step, or later
        if EXIT_USER_ERROR in _Agent.ended:
            sys.exit(EXIT_USER_ERROR)  # as of a full disk, met while saving
        # A rank that was told to stop before it had begun ends by the signal itself, and has nothing to save.
        as_told = set(_Agent.ended) <= {EXIT_PREEMPTED, -stop.sigval}
        if not as_told and not _Agent.killed and stop.sigval in STOP_SIGNALS:
            print(f"error: {_not_as_told(_Agent.ended, stop.sigval)}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED if as_told and stop.sigval in STOP_SIGNALS else 128 + stop.sigval)
    except RendezvousError as error:
        if len(set(_Agent.ended)) == 1 and _Agent.ended[0] in _FINAL:
            sys.exit(_Agent.ended[0])  # the head, whose ranks ended alike, was only quicker
        print(f"error: {_unmet(error, args)}; start them again", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _hosts(args: Any) -> tuple[int, int]:
    """The fewest and the most hosts; refuses what torchrun meets with a traceback, or waits for without an end."""
    try:
        fewest, most = torchrun.parse_min_max_nnodes(args.nnodes)
    except (ValueError, RuntimeError):
        fewest, most = 0, 0
    if not 0 < fewest <= most:
        raise UserError(f"--nnodes {args.nnodes} is not a number of hosts, nor the fewest and the most, as 2:4")
    if args.standalone and most > 1:
        raise UserError(f"--standalone is for one host, and --nnodes is {args.nnodes}; leave one of them out")
    if args.max_restarts < 0:
        raise UserError(f"--max_restarts {args.max_restarts} is below 0")
    if args.run_path:
        raise UserError("--run_path starts ranks whose exit codes nobody sees; leave it out")
    return fewest, most


def _ranks(args: Any) -> int:
    try:
        ranks = torchrun.determine_local_world_size(args.nproc_per_node)
    except ValueError as error:
        raise UserError(f"--nproc_per_node {args.nproc_per_node}: {one_line(error)}") from error
    if ranks < 1:
        raise UserError(f"--nproc_per_node {args.nproc_per_node} is below 1")
    return ranks


def _settle(args: Any, *, one_host: bool) -> None:
    """Completes torchrun's arguments, and the environment that its ranks inherit."""
    threads = max(1, len(os.sched_getaffinity(0)) // _ranks(args))
    if "SIGUSR1" not in args.signals_to_handle:
        args.signals_to_handle = _SIGNALS
    args.signals_to_handle = ",".join(name for name in args.signals_to_handle.split(",") if not _is_shielded(name))
    if args.log_dir is None:
        args.log_dir = os.devnull  # else each start leaves an empty folder in the temporary one
    if one_host:
        # A file of this process alone, which is gone when the process is; reached through the kernel's name for it.
        args.rdzv_endpoint = f"/proc/self/fd/{os.memfd_create('rendezvous')}"
        args.rdzv_backend, args.rdzv_conf, args.rdzv_id = "c10d", "store_type=file", uuid.uuid4().hex
        args.standalone, args.local_addr = False, LOOPBACK
    elif not args.rdzv_endpoint:
        raise UserError("several hosts need a place to meet; give --rdzv_endpoint HOST:PORT, the same on each")
    else:
        try:
            host, _ = parse_rendezvous_endpoint(args.rdzv_endpoint, default_port=-1)
        except ValueError as error:
            raise UserError(f"--rdzv_endpoint {args.rdzv_endpoint} is not HOST:PORT ({one_line(error)})") from error
        require_address(host, f"--rdzv_endpoint {args.rdzv_endpoint}")
        if args.rdzv_backend == "static":
            args.rdzv_backend = "c10d"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if args.shutdown_timeout is not None:
        os.environ[GRACE] = str(args.shutdown_timeout)
    grace_s = os.environ.setdefault(GRACE, "30")  # which ranks read, too
    if not grace_s.isdecimal():
        raise UserError(f"--shutdown_timeout, or {GRACE}, is {grace_s!r}, not a whole number of seconds")
    # Else a new start finds the addresses of the dead, and a host that comes back takes all others down.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"


def _is_shielded(name: str) -> bool:
    """Whether this process was started to ignore a signal that asks for no saving, as under nohup that of a terminal
    which closes; torchrun would end at it."""
    number = getattr(signal, name.strip(), None)
    return number not in STOP_SIGNALS and number is not None and signal.getsignal(number) is signal.SIG_IGN


class _Agent(LocalElasticAgent):
    """torchrun's, which does not start again what ended for good, remembers how its ranks ended, and kills none before
    the time is over that it has told them.

    torchrun's heeds `--shutdown_timeout` when it is told to stop itself. When a rank has failed, or a host has come, it
    kills the others after 30 s.
    """

    ended: tuple[int | None, ...] = ()
    killed: tuple[int, ...] = ()
    """Ranks of this host that were still there when the time was over."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _give_up_on_silent_peers()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if any(failure.exitcode in _FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids = super()._start_workers(worker_group)
        context: Any = self._pcontext
        close = context._close
        context._close = lambda death_sig, timeout=0: close(death_sig, self._shutdown_timeout)
        return pids

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        if isinstance(sys.exception(), SignalException):
            # Told to stop, as the ranks are now. Told again, torchrun's ends, and the ranks with it while they save.
            for number in (*STOP_SIGNALS, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        there = {rank: handler.proc for rank, handler in self._handlers().items() if handler.proc.poll() is None}
        began = time.monotonic()
        super()._shutdown(death_sig, timeout)
        if time.monotonic() - began >= self._shutdown_timeout:  # else it was the kernel, say, out of memory
            _Agent.killed = tuple(rank for rank, process in there.items() if process.returncode == -signal.SIGKILL)
        _Agent.ended = tuple(handler.proc.returncode for handler in self._handlers().values())

    def _handlers(self) -> dict[int, Any]:
        """The ranks' processes, by local rank."""
        context: Any = self._pcontext
        return {} if context is None else context.subprocess_handlers


def _give_up_on_silent_peers() -> None:
    """Makes the kernel end connections, of which this process has one to the store, whose other end says nothing.

    The store itself waits for ever for the answer of a host that lost its power, and this launcher with it.
    """
    options = {socket.TCP_USER_TIMEOUT: 1000 * _SILENT_S, socket.TCP_KEEPIDLE: _SILENT_S // 3}
    options |= {socket.TCP_KEEPINTVL: _SILENT_S // 3, socket.TCP_KEEPCNT: 2}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                _set_options(int(name), options)


def _set_options(descriptor: int, options: dict[int, int]) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as one:
        if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in options.items():
                one.setsockopt(socket.IPPROTO_TCP, option, value)


def _unsaved(ranks: tuple[int, ...], number: int) -> str:
    return (
        f"{os.environ[GRACE]} s after {signal.Signals(number).name} these had not ended, and were killed: local ranks "
        f"{', '.join(map(str, ranks))}; what they still saved is lost, and a new start goes on from the newest "
        "checkpoint; give --shutdown_timeout more seconds"
    )


def _not_as_told(codes: tuple[int | None, ...], number: int) -> str:
    others = [f"local rank {rank} with {code}" for rank, code in enumerate(codes) if code not in (0, EXIT_PREEMPTED)]
    return (
        f"after {signal.Signals(number).name} these ended otherwise than saved, by exit code {EXIT_PREEMPTED}: "
        f"{', '.join(others)}; a new start goes on from the newest checkpoint"
    )


def _unmet(error: RendezvousError, args: Any) -> str:
    if isinstance(error, RendezvousTimeoutError):
        return f"fewer hosts came to {args.rdzv_endpoint} in time than --nnodes {args.nnodes} asks for"
    cause = one_line(error.__cause__ or error) or type(error).__name__
    return f"the hosts do not meet at {args.rdzv_endpoint} any more ({cause})"


def _code_of(error: ChildFailedError) -> int:
    codes = {failure.exitcode for failure in error.failures.values()}
    for code in _FINAL:
        if code in codes:
            return code
    return max(error.get_first_failure()[1].exitcode, 1)  # that of a signal is negative
