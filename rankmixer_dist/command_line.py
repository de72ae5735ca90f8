"""How a verb starts and ends: arguments to a config, and an exit code with one clear line when something is wrong."""

import argparse
import atexit
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from rankmixer_dist.config import RunConfig, load_config
from rankmixer_dist.errors import EXIT_PREEMPTED, Preempted, UserError

_LAST_WORD_S = 3.0


def config_parser(prog: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """A parser for `CONFIG [section.key=value ...]`, which `parse_config` reads; add a verb's own options to it."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML file of the run")
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

    Of the ranks of one job that end alike, only local rank 0 speaks; any other exception keeps its traceback.
    """
    # Deprecations inside third-party packages are for the people who pin their versions, not for those who run a verb.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    code = 0
    try:
        main(sys.argv[1:])
    except UserError as error:
        code = 2
        _say(f"error: {error}")
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


def _say(line: str) -> None:
    """One line from local rank 0; the others give it the time to speak."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(" ".join(line.split()), file=sys.stderr)
    else:
        time.sleep(_LAST_WORD_S)  # the first rank to end makes the launcher end the others, the speaker included
