"""Ranks that are forked by a process that is warm end, read and import as those that Python starts."""

import os

import pytest

from tests.warm import Warm


def test_a_script_runs_as_python_would_run_it(launch, tmp_path):
    (tmp_path / "beside.py").write_text("WORD = 'beside'")
    script = tmp_path / "script.py"
    script.write_text("import beside, sys\nprint(beside.WORD, repr(sys.stdin.read()))\nsys.exit('a mistake')\n")
    for run in (launch.forked, launch.python):
        ended = run(script)
        assert (ended.returncode, ended.stdout, ended.stderr) == (1, "beside ''\n", "a mistake\n")


def test_a_process_that_has_died_is_told():
    warm = Warm({**os.environ, "PYTHONHOME": os.devnull})
    with pytest.raises(AssertionError, match="the process that forks ranks has died"):
        warm.run("script.py", (), None)
    warm.close()
