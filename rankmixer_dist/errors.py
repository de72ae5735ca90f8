"""The one kind of error that a person who runs a verb can mend, and how a verb ends with it."""

import atexit
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

_LAST_WORD_S = 3.0


class UserError(ValueError):
    """A mistake in a config, the data or the command line; the message says in one line what to change."""


def run_verb(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a verb with the command line's arguments: exit code 0 on success, 2 after one clear line on a `UserError`.

    Of the ranks of one job that fail alike, only local rank 0 speaks; any other exception keeps its traceback.
    """
    # Deprecations inside third-party packages are for the people who pin their versions, not for those who run a verb.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    code = 0
    try:
        main(sys.argv[1:])
    except UserError as error:
        code = 2
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            time.sleep(_LAST_WORD_S)  # the first rank to end makes the launcher end the others, the speaker included
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
