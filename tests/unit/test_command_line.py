"""How a verb ends: exit codes, and who speaks."""

import os
import subprocess
import sys
import time

import pytest

from rankmixer_dist.errors import EXIT_PREEMPTED

PREEMPTED = "raise Preempted('saved at step 7;\\nstart it again')"
CASES = {
    "pass": (0, ""),
    "raise UserError('set a.b\\nto 1')": (2, "error: set a.b to 1\n"),
    PREEMPTED: (EXIT_PREEMPTED, "stopped: saved at step 7; start it again\n"),
    "sys.exit(5)": (5, ""),
}


def run(body: str, local_rank: str = "0") -> subprocess.CompletedProcess[str]:
    lines = ["import sys", "from rankmixer_dist.command_line import run_verb"]
    lines += ["from rankmixer_dist.errors import Preempted, UserError", "def main(arguments):", f"    {body}"]
    program = "\n".join([*lines, "run_verb(main)"])
    env = os.environ | {"LOCAL_RANK": local_rank}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("body", CASES)
def test_a_verb_ends_with_its_code_and_one_line(body):
    ended = run(body)
    assert (ended.returncode, ended.stderr) == CASES[body]


def test_other_local_ranks_let_the_first_one_speak():
    start = time.monotonic()
    ended = run(PREEMPTED, local_rank="1")
    assert (ended.returncode, ended.stderr) == (EXIT_PREEMPTED, "")
    assert time.monotonic() - start > 2, "it was to wait until the first one has spoken"


def test_any_other_error_keeps_its_traceback():
    ended = run("1 / 0")
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
