"""A verb that starts Ray: it listens to nobody else, lives with a long TMPDIR, and leaves nothing when it is killed."""

import ipaddress
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.jobs import until
from tests.integration.test_bad_predictions import evaluate, good_rows

LONG = "a_folder_that_a_cluster_makes_for_each_job_1355700/project_recommendation/node0016/scratch"


def listening(process: psutil.Process) -> list[str]:
    """Addresses that a process listens at."""
    return [each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]


def is_loopback(address: str) -> bool:
    plain = ipaddress.ip_address(address)
    return (getattr(plain, "ipv4_mapped", None) or plain).is_loopback


BESIDE = """
import os, signal, subprocess, sys
from pathlib import Path
from data_pipeline.ray_cluster import _Reaper
before = subprocess.Popen(["sleep", "300"])
reaper = _Reaper([Path(sys.argv[1])])
after = subprocess.Popen(["sh", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
print(before.pid, after.pid, after.stdout.readline().strip(), flush=True)
reaper.take_over()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_started_before_ray_is_none_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    command = [sys.executable, "-c", BESIDE, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as killed:
        assert killed.stdout is not None
        before, *after = (psutil.Process(int(pid)) for pid in killed.stdout.readline().split())
        try:
            until(lambda: not any(map(runs, after)) and not folder.exists(), "what came after has ended")
            assert runs(before)
        finally:
            before.kill()


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.ray
def test_ray_is_for_this_machine_alone_and_ends_with_the_verb(launch, tmp_path: Path) -> None:
    spill, scratch, path = tmp_path / "spill", tmp_path / LONG, tmp_path / "scored.parquet"
    spill.mkdir()
    scratch.mkdir(parents=True)
    pq.write_table(pa.table(good_rows(1_000_000)), path, row_group_size=50_000)
    command = ("launch/evaluate.py", "--predictions", str(path), "--spill", str(spill))
    with launch.started(*command, log=tmp_path / "log", TMPDIR=str(scratch)) as process:
        until(lambda: list(spill.rglob("*.npy")), "rows are spilled", process)
        family = psutil.Process(process.pid).children(recursive=True)
        addresses = {pid: listening(psutil.Process(pid)) for pid in (process.pid, *(each.pid for each in family))}
        (folder,) = {
            Path(word.split("=")[1]).parent
            for each in family
            for word in each.cmdline()
            if word.startswith(("--session-dir=", "--session_dir="))
        }
        assert folder.is_dir()
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not any(map(runs, family)), "all of Ray has ended")
    heard = [address for own in addresses.values() for address in own]
    assert len(heard) > 3 and all(map(is_loopback, heard))
    assert len(os.fsencode(scratch)) > 107
    until(lambda: not folder.exists(), "Ray's folder is gone")
    until(lambda: not list(scratch.iterdir()), "what it kept on disk is gone")
    # What the verb itself was writing is the next start's to remove.
    (left,) = spill.iterdir()
    assert evaluate(path, spill=spill)["rows"] == 1_000_000
    assert not left.exists() and not list(spill.iterdir())
