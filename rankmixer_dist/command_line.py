"""How a verb starts and ends: arguments to a config, and an exit code with one clear line when something is wrong."""

import argparse
import atexit
import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import EXIT_PREEMPTED, Preempted, RankError, UserError

_LAST_WORD_S = 3.0
_PR_SET_PDEATHSIG = 1
_PYTHON_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
"""What torchrun and deepspeed set for the ranks they start."""


def config_parser(
    prog: str, description: str | None, epilog: str, *, optional: bool = False
) -> argparse.ArgumentParser:
    """A parser for `CONFIG [section.key=value ...]`, which `parse_config` reads; add a verb's own options to it.

    Args:
        optional: the verb can do without a config.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?" if optional else None, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change in the config")
    # The deepspeed launcher passes it; it sets LOCAL_RANK too, which is what is read.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    return parser


def parse_config(parser: argparse.ArgumentParser, arguments: list[str]) -> RunConfig:
    """The config that a verb's arguments name.

    Raises:
        UserError: as `load_config` does.
    """
    parsed = parser.parse_args(arguments)
    return load_config(parsed.config, parsed.overrides)


def run_verb(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a verb with the command line's arguments: exit code 0 on success, 2 after one clear line on a `UserError`,
    `EXIT_PREEMPTED` after one on `Preempted`.

    Of the ranks of one job that end alike, only local rank 0 speaks, but a `RankError` is told by whoever met it; any
    other exception keeps its traceback. A rank does not outlive its launcher.
    """
    if "RANK" in os.environ:
        _die_with_launcher()
    # Deprecations inside third-party packages are for the people who pin their versions, not for those who run a verb.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    code = 0
    try:
        main(sys.argv[1:])
    except UserError as error:
        code = 2
        _say(f"error: {error}", alone=isinstance(error, RankError))
    except Preempted as stop:
        code = EXIT_PREEMPTED
        _say(f"stopped: {stop}")
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        code = 1
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: gloo's threads that DeepSpeed's groups keep alive abort a process in its static destructors.
    os._exit(code)


def _die_with_launcher() -> None:
    """From now on the kernel kills this process when the one that started it is gone, even if that one was killed.

    Else ranks without a launcher would train on beside those of the next start. Only Linux can do this; to it, the end
    of the launcher's thread that started this process is the end of the launcher.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or _is_orphan(parent):  # it was gone before the kernel knew what to do
        os.kill(os.getpid(), signal.SIGKILL)


def _is_orphan(parent: int) -> bool:
    """Whether process 1 is not the launcher, which is a Python, but has inherited this process from it."""
    if parent != 1 or not any(name in os.environ for name in _PYTHON_LAUNCHERS):
        return False
    try:
        return not Path("/proc/1/exe").samefile(sys.executable)
    except OSError:  # another user's
        return True


def _say(line: str, *, alone: bool = False) -> None:
    """One line from local rank 0; the others, unless they are `alone`, give it the time to speak."""
    if alone or os.environ.get("LOCAL_RANK", "0") == "0":
        print(" ".join(line.split()), file=sys.stderr)
    else:
        time.sleep(_LAST_WORD_S)  # the first rank to end makes the launcher end the others, the speaker included
