"""A RAY_ADDRESS at which no cluster answers is one line within seconds; a long TMPDIR gives way to a short folder."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_pipeline import ray_address, ray_cluster
from data_pipeline.ray_address import require_cluster
from data_pipeline.ray_cluster import cluster_address, short_enough
from rankmixer_dist.errors import UserError


@contextmanager
def server(answer: bytes) -> Iterator[int]:
    """Somebody at a port of this machine, who answers so to the first one that comes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)
            done.wait()

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        thread.join()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("address", ["head:notaport", "6379", ":6379", "head", "head:", "head:0", "head:65536", "h:²"])
def test_a_malformed_address(address: str) -> None:
    with pytest.raises(UserError, match=r"^RAY_ADDRESS .*: is no address; give HOST:PORT"):
        require_cluster(address)


def test_nobody_or_somebody_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_PATIENCE_S", 0.5)
    with pytest.raises(UserError, match=r"no Ray cluster answers there \(.*refused\)"):
        require_cluster(f"127.0.0.1:{unused_port()}")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS head\.invalid:6379: no Ray cluster answers there"):
        require_cluster("head.invalid:6379")
    for answer, told in ((b"HTTP/1.1 400 Bad Request\r\n", "not the head of a Ray cluster"), (b"", "timed out")):
        with server(answer) as port, pytest.raises(UserError, match=told):
            require_cluster(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS ray://head:10001: Ray's client is not used here"):
        require_cluster("ray://head:10001")


@pytest.mark.parametrize(("value", "address"), [("", None), (" ", None), ("local", None), (" a:1 ", "a:1")])
def test_what_names_no_cluster(value: str, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == address


def test_a_path_that_is_too_long_for_sockets_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert short_enough(Path("/tmp")) == Path("/tmp")
    assert short_enough(long) in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
    monkeypatch.setattr(ray_cluster.os, "access", lambda path, mode: path == long)
    with pytest.raises(
        UserError, match=r"^TMPDIR .*x: too long a path for the sockets of Ray.*; set RAY_TMPDIR to one$"
    ):
        short_enough(long)


def test_a_machine_that_cannot_talk_to_itself() -> None:
    ray_address.require_loopback()
    code = "from data_pipeline.ray_address import require_loopback; require_loopback()"
    alone = [shutil.which("unshare") or "no unshare", "--net", sys.executable, "-c"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        subprocess.run([*alone, "pass"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here, only root may: {error}")
    ended = subprocess.run([*alone, code], env=env, capture_output=True, text=True, check=False)
    told = "UserError: Ray cannot be started: 127.0.0.1 does not answer (["
    assert told in ended.stderr and "or set data.job=serial" in ended.stderr
