"""Exceptions of the libraries as users meet them, raised by the libraries themselves, and the line of each."""

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from rankmixer_dist.errors import UserError
from rankmixer_dist.library_errors import explain


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        call()
    return caught.value


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda folder: (folder / "none").read_text(), "none: no such file or folder"),
        (lambda folder: folder.read_text(), "is a folder, and a file is needed"),
        (lambda folder: (folder / "file" / "x").write_text(""), "a part of this path is a file"),
        (lambda folder: (folder / ("x" * 300)).write_text(""), "too long for the file system"),
        (lambda folder: (folder / "file").mkdir(), "file: is there already"),
        (lambda folder: folder.rename(folder / "file" / "x"), "file/x: "),
        (lambda folder: (folder / "circle").read_text(), "circle"),
        (lambda folder: Path("/dev/full").write_text("x"), "no space is left"),
        (lambda folder: os.rmdir(folder), "the folder is not empty"),
        (lambda folder: pq.read_table(folder / "file"), "/file': "),
        (lambda folder: pyarrow.dataset.dataset(folder / "file", format="parquet"), "mend or replace"),
        (lambda folder: np.empty(10**14), "memory is used up: Unable to allocate"),
        (lambda folder: torch.empty(10**14), "memory is used up"),
        (lambda folder: bytearray(1 << 60), "memory is used up: MemoryError"),
        (lambda folder: ctypes.CDLL("libnone.so.1"), "the library libnone.so.1 is not on this machine"),
    ],
)
def test_what_the_system_and_the_libraries_raise(call: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not parquet at all, but long enough")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    line = explain(raised(lambda: call(tmp_path)))
    assert line is not None and told in line
    assert "\n" not in line


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = raised(lambda: dist.TCPStore("127.0.0.1", port, is_master=True))
    assert explain(error) == (
        f"the port {port} is in use; choose another one as MASTER_PORT (torchrun: --master-port), or end the process "
        "that holds it"
    )


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    wait = {"is_master": False, "timeout": torch.distributed.default_pg_timeout / 1800}
    line = explain(raised(lambda: dist.TCPStore("127.0.0.1", port, **wait)))
    assert line is not None and line.startswith("the ranks cannot reach each other: ") and "MASTER_PORT" in line


def test_what_a_wheel_cannot_ask_for() -> None:
    for name in ("torchrec", "fbgemm_gpu"):
        told = f"{name} is not installed; `python launch/doctor.py` says which build this machine needs"
        assert explain(ModuleNotFoundError(f"No module named {name!r}", name=name)) == told
    assert explain(ModuleNotFoundError("No module named 'own'", name="rankmixer_dist.own")) is None


def test_what_a_task_of_ray_met_is_told_as_itself() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    full = OSError(errno.ENOSPC, "No space left on device", "shard.parquet")
    assert explain(exceptions.RayTaskError("f", "frames", full)) == explain(full)
    assert explain(exceptions.RayTaskError("f", "frames", ZeroDivisionError())) is None
    assert "Ray: " in (explain(exceptions.RaySystemError("the store is gone")) or "")


@pytest.mark.parametrize(
    "call",
    [
        lambda: 1 / 0,
        lambda: {}["x"],
        lambda: torch.zeros(2) @ torch.zeros(3),
        lambda: int("x"),
        lambda: os.close(10_000),  # a number of a file that is not open: nobody's file
        lambda: pyarrow.array([1, "x"]),
        lambda: pyarrow.array([0], pyarrow.timestamp("ms", "No/Where")).cast(pyarrow.string()),  # no path
    ],
)
def test_a_mistake_of_the_program_keeps_its_traceback(call: Callable[[], object]) -> None:
    assert explain(raised(call)) is None


def test_a_user_error_is_not_explained_again() -> None:
    assert explain(UserError("x")) is None
