"""The Ray that this process works with."""

import atexit
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_pipeline import ray_reaper
from data_pipeline.own_folder import OwnFolder, sweep
from data_pipeline.ray_address import require_cluster, require_loopback
from rankmixer_dist.errors import UserError, one_line

_OBJECT_STORE_BYTES = 2 << 30  # a cap, not a reservation; what does not fit is spilled to disk
_PREFIX = "rm-ray-"
# Below the folder that Ray is given: /session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store, and a number if
# there are several.
_SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.00")
_MOST_SOCKET_BYTES = 107
_passed_on: set[str] = {""}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def join_ray() -> Any:
    """The `ray` module, joined to the running Ray of this process, else the cluster at RAY_ADDRESS, else one that is
    started on this machine: it listens on the loopback interface alone and ends with this process, however that ends.

    Raises:
        UserError: RAY_ADDRESS names no running cluster that fits, or Ray cannot be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of results that nobody asks for after the first error
    import ray

    if not ray.is_initialized():
        ray._private.worker.print_to_stdstream = _pass_on
        address = cluster_address()
        if address is not None:
            require_cluster(address)
            hint = "" if os.environ.get("RAY_AUTH_MODE") else " without RAY_AUTH_MODE=token, if it asks for one"
            with _ray_errors_told(f"RAY_ADDRESS {address}: this cluster cannot be joined{hint}"):
                ray.init(job_config=_job_config(), **_QUIET)
        else:
            _start(ray)
    return ray


def cluster_address() -> str | None:
    """RAY_ADDRESS where it names a cluster; None where Ray is to be started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def spill_folder() -> Path:
    """Where a Ray that is started here puts what does not fit memory."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _start(ray: Any) -> None:
    require_loopback()
    wanted = spill_folder()
    # The short folder may be of a small disk: what does not fit memory goes where it was wanted.
    parents = dict.fromkeys((short_enough(wanted), wanted))
    for parent in parents:
        sweep(parent, _PREFIX)
    folders = [OwnFolder(parent, _PREFIX) for parent in parents]
    reaper = _Reaper([folder.path for folder in folders])

    def end() -> None:
        ray.shutdown()
        for folder in folders:
            folder.remove()
        reaper.dismiss()

    atexit.register(end)
    with _ray_errors_told(f"Ray cannot be started in {folders[0].path}"), _loopback_only():
        # "local": without it Ray joins whatever cluster was last started on this machine.
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(folders[0].path),
            object_spilling_directory=str(folders[-1].path),
            job_config=_job_config(),
            **_QUIET,
        )
    reaper.take_over()


def _job_config() -> Any:
    """Has workers look for this package where this process found it, and not in its working directory: Ray would put
    that first, where another copy of the package may lie."""
    from ray.job_config import JobConfig

    class Found(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # which is all that keeps Ray from it

    home = Path(__file__).absolute().parents[1]
    # Workers look in an environment's own folder anyway, and there for Python's own modules only after Python.
    return Found(_py_driver_sys_path=[] if home.name in ("site-packages", "dist-packages") else [str(home)])


def short_enough(wanted: Path) -> Path:
    """`wanted`, or a folder with a path that is short enough for Ray's sockets below it.

    Raises:
        UserError: there is none.
    """
    for parent in (wanted, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        longest = len(os.fsencode(parent.resolve())) + len(f"/{_PREFIX}01234567") + _SOCKET_BYTES
        if longest <= _MOST_SOCKET_BYTES and os.access(parent, os.W_OK | os.X_OK):
            return parent
    raise UserError(
        f"TMPDIR {wanted}: too long a path for the sockets of Ray, which may have {_MOST_SOCKET_BYTES} bytes, and no "
        "shorter folder can be written; set RAY_TMPDIR to one"
    )


def _pass_on(said: dict[str, Any], ignore_prefix: bool) -> None:
    """What Ray has to say of its own processes, in a line each, once and not between what a verb prints."""
    for text in said["lines"]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        line = "" if not lines else lines[-1] if lines[0].startswith("Traceback") else lines[0]
        if line not in _passed_on:
            _passed_on.add(line)
            print(f"warning: Ray: {line}", file=sys.stderr)


class _Reaper:
    """A process that ends Ray's own when this one is killed (`ray_reaper.py`)."""

    def __init__(self, folders: list[Path]) -> None:
        import psutil

        self._me = psutil.Process()
        self._others = set(self._me.children())  # which this process has started for another purpose
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", ray_reaper.__file__, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the group of this process is not for it
            text=True,
        )

    def take_over(self) -> None:
        """Names all processes that this one has started since this object was made, and theirs, as those to end."""
        import psutil

        assert self._process.stdin is not None
        family: list[psutil.Process] = []
        for child in self._me.children():
            if child not in self._others and child.pid != self._process.pid:
                with suppress(psutil.NoSuchProcess):  # it has ended since
                    family += [child, *child.children(recursive=True)]
        for process in family:
            started = ray_reaper.start_time(process.pid)
            if started is not None:
                self._process.stdin.write(f"{process.pid} {started}\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """Ray has ended, and its folder is gone."""
        self._process.communicate()


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Inside the block, a Ray that is started takes 127.0.0.1 for its address, and so listens there alone."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # whether other hosts may join
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _ray_errors_told(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # What goes wrong at the start comes as any of a dozen kinds.
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}") from error
