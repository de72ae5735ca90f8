"""Runs one verb over many inputs: `driver.py SCRIPT JOBS RESULTS`.

Each job is a process of its own, forked from one that has loaded the script: it costs what the verb does, and not what
Python does to start.
"""

import atexit
import importlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

HEAVY = ("torch", "torchrec", "deepspeed", "ray", "sklearn")
SILENCE_S = 20
"""Of a process that does nothing."""
MOST_S = 120


def run(main: Any, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """The end of a job: exit code (None where it was silent for too long), what it said, the libraries it loaded."""
    folder = Path(tempfile.mkdtemp())  # not TemporaryDirectory, which the forked process would remove as it ends
    out, err, loaded = (folder / each for each in ("out", "err", "loaded"))
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(main, script, job, out, err, loaded)
    code, worked, since = None, 0.0, start
    while code is None and time.monotonic() - since < SILENCE_S:
        done, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.005)
        if code is None and time.monotonic() - start < MOST_S:
            # On a machine with much else to do seconds pass without a chance to say anything.
            now = sum(psutil.Process(pid).cpu_times()[:2])
            worked, since = (now, time.monotonic()) if now > worked + 0.5 else (worked, since)
    seconds = time.monotonic() - start
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said, told, libraries = (path.read_text(errors="replace") if path.exists() else "" for path in (out, err, loaded))
    shutil.rmtree(folder)
    return {"code": code, "out": said, "err": told, "loaded": libraries.split(), "seconds": seconds}


def _become(main: Any, script: str, job: dict[str, Any], out: Path, err: Path, loaded: Path) -> None:
    """The forked process: files for its output, the job's place and environment, and the verb as a shell starts it."""
    from rankmixer_dist.command_line import run_verb

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stdout = os.open("/dev/full" if job.get("stdout") == "full" else out, os.O_WRONLY | os.O_CREAT)
    if job.get("stdout") == "gone":
        reader, stdout = os.pipe()
        os.close(reader)
    os.dup2(stdout, 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
    if job.get("stdout") == "closed":
        os.close(1)
        sys.stdout = None  # as Python has it
    os.environ |= job.get("env", {})
    if job.get("cwd") == "removed":
        os.chdir(tempfile.mkdtemp())
        os.rmdir(os.getcwd())
    atexit.register(lambda: loaded.write_text(" ".join(name for name in HEAVY if name in sys.modules)))
    sys.argv = [script, *job["arguments"]]
    run_verb(main)


if __name__ == "__main__":
    script, jobs, results = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("verb", script)
    assert spec is not None and spec.loader is not None
    verb = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verb)
    if Path(script).stem in ("compare", "evaluate"):  # what they load for themselves, once for all jobs
        importlib.import_module("rankmixer_dist.report.compare")
    ended = [run(verb.main, script, job) for job in json.loads(Path(jobs).read_text())]
    Path(results).write_text(json.dumps(ended))
