"""How a verb ends: exit codes, and who speaks."""

import os
import socket
import subprocess
import sys
import time

import pytest
from rich.table import Table

from rankmixer_dist.command_line import console
from rankmixer_dist.errors import EXIT_PREEMPTED

PREEMPTED = "raise Preempted('saved at step 7;\\nstart it again')"
CASES = {
    "pass": (0, ""),
    "raise UserError('set a.b\\nto 1')": (2, "error: set a.b to 1\n"),
    PREEMPTED: (EXIT_PREEMPTED, "stopped: saved at step 7; start it again\n"),
    "sys.exit(5)": (5, ""),
    "return 3": (3, ""),
    "raise KeyboardInterrupt": (130, "stopped: interrupted by Ctrl-C\n"),
    "raise UserError('\\x1b[2J caf\\xe9')": (2, "error: \\x1b[2J caf\xe9\n"),
    "open('/none/x')": (2, "error: /none/x: no such file or folder; make it, or name another "
                       "(RANKMIXER_TRACEBACK=1 shows where)\n"),
    "print('x'); sys.stdout.flush(); open('/dev/full', 'w').write('x' * 10**6)": (
        2, "error: no space is left on this disk; make room and start again (RANKMIXER_TRACEBACK=1 shows where)\n"
    ),
    # Which Python 3.13 and later tell of with a traceback.
    "file = open('/dev/full', 'w'); file.write('x'); del file": (0, ""),
    "import io; type('Wrapper', (io.IOBase,), {'close': lambda self: io.BytesIO().detach()})()": (0, ""),
}  # fmt: skip


def run(body: str, local_rank: str = "0", **env: str) -> subprocess.CompletedProcess[str]:
    lines = ["import sys", "from rankmixer_dist.command_line import run_verb"]
    lines += [
        "from rankmixer_dist.errors import Preempted, RankError, UserError",
        "def main(arguments):",
        f"    {body}",
    ]
    program = "\n".join([*lines, "run_verb(main)"])
    env = os.environ | {"LOCAL_RANK": local_rank} | env
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("body", CASES)
def test_a_verb_ends_with_its_code_and_one_line(body):
    ended = run(body)
    assert (ended.returncode, ended.stderr) == CASES[body]


def test_a_rank_that_lost_another_may_be_started_again():
    ended = run("import torch.distributed; raise torch.distributed.DistNetworkError('Broken pipe')")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the ranks cannot reach each other: Broken pipe")


def test_other_local_ranks_let_the_first_one_speak():
    start = time.monotonic()
    ended = run(PREEMPTED, local_rank="1")
    assert (ended.returncode, ended.stderr) == (EXIT_PREEMPTED, "")
    assert time.monotonic() - start > 2, "it was to wait until the first one has spoken"


def test_a_mistake_that_one_rank_makes_before_it_meets_the_others_is_told():
    start = time.monotonic()
    ended = run("raise UserError('no such file')", local_rank="1")
    assert (ended.returncode, ended.stderr) == (2, "error: no such file\n")
    assert time.monotonic() - start > 2, "the first one speaks where all make it"
    met = "from rankmixer_dist.command_line import ranks_have_met; ranks_have_met(); raise UserError('of all')"
    ended = run(met, local_rank="1")
    assert (ended.returncode, ended.stderr) == (2, "")


def test_a_rank_speaks_of_what_it_met_alone():
    for local_rank in ("0", "1"):
        ended = run("raise RankError('shard 3:\\ndamaged')", local_rank=local_rank)
        assert (ended.returncode, ended.stderr) == (2, "error: shard 3: damaged\n")


def test_what_one_rank_alone_meets_of_its_machine_is_told_after_the_first_had_its_time():
    start = time.monotonic()
    ended = run("open('/none/x')", local_rank="1")
    assert ended.returncode == 2 and ended.stderr.startswith("error: /none/x: no such file"), ended.stderr
    assert time.monotonic() - start > 2


def test_the_traceback_of_a_line_is_shown_on_request():
    for body, line in (("open('/none/x')", "error: /none/x: "), ("raise UserError('x')", "error: x")):
        ended = run(body, RANKMIXER_TRACEBACK="1")
        assert ended.returncode == 2 and "Traceback" in ended.stderr
        assert ended.stderr.splitlines()[-1].startswith(line)


def test_the_command_line_needs_the_standard_library_alone():
    program = "import sys; before = set(sys.modules); import rankmixer_dist.command_line; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {program}"],
                            capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
    own = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names - {"rankmixer_dist", "sitecustomize"}
    assert not {name for name in own if not name.startswith("_")}, own


def test_a_console_prints_names_as_they_are(capsys):
    table = Table("[bold]name[/]", title="[red]title :smile:")
    table.add_row("[/] [link=x]y[/link]")
    console(width=60).print(table, "[b]text[/b]")
    shown = capsys.readouterr().out
    for text in ("[bold]name[/]", "[red]title :smile:", "[/] [link=x]y[/link]", "[b]text[/b]"):
        assert text in shown


def test_any_other_error_keeps_its_traceback():
    ended = run("1 / 0")
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


MARKED = """
import sys, os
from rankmixer_dist.command_line import run_verb
def main(arguments):
    print("one")
    print("two\\nthree", end="", flush=True)
    print(" more", flush=True)
    raise RuntimeError("fails")
run_verb(main)
"""


@pytest.mark.parametrize(("local", "marked"), [("1", True), ("4", False)])
def test_lines_of_ranks_of_several_hosts_name_host_and_rank(local: str, marked: bool) -> None:
    env = os.environ | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": local}
    run = subprocess.run([sys.executable, "-c", MARKED], env=env, capture_output=True, text=True, check=False)
    mark = f"[{socket.gethostname()} rank 3] " if marked else ""
    assert run.stdout == f"{mark}one\n{mark}two\n{mark}three more\n"
    lines = run.stderr.splitlines()
    assert lines[0] == f"{mark}Traceback (most recent call last):"
    assert lines[-1] == f"{mark}RuntimeError: fails"
    assert all(line.startswith(mark) for line in lines)
