"""How a verb starts and ends: arguments to a config, and an exit code with one clear line when something is wrong.

Importing it needs the standard library alone: the doctor looks at machines where nothing else is installed.
"""

import argparse
import atexit
import io
import os
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from rankmixer_dist.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted, RankError, UserError
from rankmixer_dist.launched import end_when_told_as_process_1, end_with_launcher
from rankmixer_dist.library_errors import explain, is_lost_rank

if TYPE_CHECKING:
    from rich.console import Console

    from rankmixer_dist.config import RunConfig

_LAST_WORD_S = 3.0
_EXIT_INTERRUPTED = 128 + signal.SIGINT
_TRACEBACK = "RANKMIXER_TRACEBACK"
"""Environment variable: with 1, a line about an exception stands below its traceback."""


class _Start:
    by_name = False
    """Whether a verb was started as `rankmixer VERB`, or else as `python launch/VERB.py`."""


def started_by_name() -> None:
    """From now on texts call the verbs `rankmixer VERB`; a wheel has no folder launch/."""
    _Start.by_name = True


def as_typed(text: str) -> str:
    """A text that calls the verbs `python launch/VERB.py` or `launch/VERB.py`, in the words of whoever started this."""
    if not _Start.by_name:
        return text
    text = re.sub(r"(torchrun\.py .*?)\blaunch/(\w+)\.py", r"\1\2", text)
    text = re.sub(r"(deepspeed --.*?)\blaunch/(\w+)\.py", r"\1--module rankmixer_dist \2", text)
    return re.sub(r"(?<!=)\b(?:python )?launch/(\w+)\.py", r"rankmixer \1", text)


def verb_parser(verb: str, description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A verb's parser, whose help names the command that was typed."""
    return argparse.ArgumentParser(
        prog=as_typed(f"python launch/{verb}.py"),
        description=description and as_typed(description),
        epilog=as_typed(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(
    verb: str, description: str | None, epilog: str, *, optional: bool = False
) -> argparse.ArgumentParser:
    """A parser for `CONFIG [section.key=value ...]`, which `parse_config` reads; add a verb's own options to it.

    Args:
        optional: the verb can do without a config.
    """
    parser = verb_parser(verb, description, epilog)
    parser.add_argument("config", nargs="?" if optional else None, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change in the config")
    # The deepspeed launcher passes it; it sets LOCAL_RANK too, which is what is read.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    return parser


def parse_config(parser: argparse.ArgumentParser, arguments: list[str]) -> "RunConfig":
    """The config that a verb's arguments name.

    Raises:
        UserError: as `load_config` does.
    """
    from rankmixer_dist.config import load_config

    parsed = parser.parse_args(arguments)
    return load_config(parsed.config, parsed.overrides)


def console(**options: Any) -> "Console":
    """A console of rich for tables that hold names and values of a user, which it prints as they are: no markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


def run_verb(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a verb with the command line's arguments: exit code 0, or what it returns, on success, 2 after one clear
    line on a `UserError` or on an exception that `explain` knows, `EXIT_PREEMPTED` after one on `Preempted`.

    Of the ranks of one job that end alike, only local rank 0 speaks, but a `RankError` is told by whoever met it; any
    other exception keeps its traceback. A rank does not outlive its launcher. A verb goes on when its output can no
    longer be shown, and says so.
    """
    end_with_launcher()
    end_when_told_as_process_1()
    # Deprecations inside third-party packages are for the people who pin their versions, not for those who run a verb.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.unraisablehook = _tell_unraisable
    sys.stderr = _stream(sys.stderr, 2, "stderr")
    sys.stdout = _stream(sys.stdout, 1, "stdout")
    code = _code_of(main)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: gloo's threads that DeepSpeed's groups keep alive abort a process in its static destructors.
    os._exit(code or _Shown.lost)


def _code_of(main: Callable[[list[str]], int | None]) -> int:
    """The exit code of a verb, whose last word has been said."""
    try:
        return main(sys.argv[1:]) or 0
    except UserError as error:
        if os.environ.get(_TRACEBACK) == "1":
            traceback.print_exc()
        alone = isinstance(error, RankError)
        if not alone and not _Ranks.have_met and not _is_first():
            time.sleep(_LAST_WORD_S)  # who is still there then has met it alone, and speaks
            alone = True
        _say(f"error: {error}", alone=alone)
        return EXIT_USER_ERROR
    except Preempted as stop:
        _say(f"stopped: {stop}")
        return EXIT_PREEMPTED
    except SystemExit as error:  # argparse
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        _say("stopped: interrupted by Ctrl-C")
        return _EXIT_INTERRUPTED
    except BaseException as error:
        line = explain(error)
        if is_lost_rank(error) and _Ranks.told_to_stop:
            return 1
        if line is not None and (is_lost_rank(error) or not _is_first()):
            # Who is still there then has met it alone, and speaks. A rank that lost another one is a consequence, which
            # the launcher ends once it sees the cause: the last word is that of the rank that knows what went wrong.
            time.sleep(_LAST_WORD_S)
        if line is None or os.environ.get(_TRACEBACK) == "1":
            traceback.print_exc()
        if line is None:
            return 1
        _say(f"error: {line} ({_TRACEBACK}=1 shows where)", alone=True)
        return 1 if is_lost_rank(error) else EXIT_USER_ERROR


def _tell_unraisable(unraisable: Any) -> None:
    """Shows an exception that nobody can catch, but that of a file that is dropped and still cannot be written: an
    `OSError`, or a `ValueError` where what lies below it is closed.

    A full disk was told where the file was written. Python 3.13 tells it again when the file is dropped, with a
    traceback, where earlier ones do not.
    """
    if not (isinstance(unraisable.object, io.IOBase) and isinstance(unraisable.exc_value, OSError | ValueError)):
        sys.__unraisablehook__(unraisable)


class _Ranks:
    have_met = told_to_stop = False


def ranks_have_met() -> None:
    """From now on all ranks raise a `UserError` alike, but for a `RankError`, and the first of each host speaks."""
    _Ranks.have_met = True


def rank_is_told_to_stop() -> None:
    """From now on this rank says nothing when it loses another one: whoever told it to stop knows what went wrong."""
    _Ranks.told_to_stop = True


class _Shown(io.FileIO):
    """A standard stream: what cannot be written to it is dropped, which is told once on the other one."""

    lost = 0
    """Exit code of a verb that ended well, but for output that a full or failing disk did not take."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._title, self._told = name, False
        self._mark, self._at_line_start = mark_of_rank().encode(), True

    def write(self, data: Any) -> int:
        try:
            return super().write(data) if not self._mark else self._write_marked(bytes(data))
        except OSError as error:
            self._tell(error)
            return len(memoryview(data).cast("B"))

    def _write_marked(self, data: bytes) -> int:
        """The same with the rank's mark in front of each line, in one call: other ranks write to this log too."""
        marked = (self._mark if self._at_line_start else b"") + data[:-1].replace(b"\n", b"\n" + self._mark) + data[-1:]
        self._at_line_start = data.endswith(b"\n")
        while marked:
            marked = marked[super().write(marked) :]
        return len(data)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            if not isinstance(error, BrokenPipeError) and "RANK" not in os.environ:
                _Shown.lost = 1  # a reader that left, as `head` does, has seen what it wanted to; a rank's is a log
            if self._title == "stdout":
                print(f"warning: stdout: {error.strerror}; the work goes on, but is no longer shown", file=sys.stderr)


def mark_of_rank() -> str:
    """`[host rank 3] ` for a rank whose job has several hosts, as its launcher says; else nothing."""
    env = os.environ
    world_size = env.get("WORLD_SIZE", "1")
    on_host = env.get("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE"))
    if on_host is None and env.get("MASTER_ADDR", "").startswith(("127.", "localhost")):
        on_host = world_size
    if "RANK" not in env or world_size in ("1", on_host):
        return ""
    return f"[{socket.gethostname()} rank {env['RANK']}] "


def _stream(stream: Any, descriptor: int, name: str) -> Any:
    """A standard stream that cannot end a verb: not by a reader that left, a full disk or a character it lacks."""
    if stream is None:  # closed by whoever started this process; another file may have its number by now
        return open(os.devnull, "w")
    if type(stream) is not io.TextIOWrapper:  # a test's
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Shown(descriptor, name))
    return io.TextIOWrapper(
        raw, encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )  # fmt: skip


def _is_first() -> bool:
    local_rank = os.environ.get("LOCAL_RANK", "0")
    return local_rank == "0" or not local_rank.isdecimal()


def _say(line: str, *, alone: bool = False) -> None:
    """One line from local rank 0; the others, unless they are `alone`, give it the time to speak."""
    if alone or _is_first():
        line = " ".join(as_typed(line).split())
        print("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), file=sys.stderr)
    else:
        time.sleep(_LAST_WORD_S)  # the first rank to end makes the launcher end the others, the speaker included
