"""A thread of the project works on the device of whoever started it."""

import ast
import threading

import pytest
import torch

from rankmixer_dist.threads import start_thread
from tests.unit.test_structure import ROOT, code_files

STARTERS = {"Thread", "Timer", "ThreadPoolExecutor", "ThreadPool", "start_new_thread", "to_thread", "run_in_executor"}
WITHOUT_A_DEVICE = {
    "rankmixer_dist/threads.py": "the door itself",
    "rankmixer_dist/launched.py": "it looks at the process of the launcher",
    "rankmixer_dist/parallel/meeting.py": "it waits for ranks before there is a device",
    "rankmixer_dist/parallel/watchdog.py": "it reports a rank that may hang in the driver, which it must not call then",
    "rankmixer_dist/parallel/stop_guard.py": "it ends a process that may hang in the driver, as the watchdog",
    "data_pipeline/streaming/checkpoints.py": "it links files",
    "data_pipeline/sources/parquet_log.py": "it reads the ends of files",
    "rankmixer_dist/benchmarks/predictions.py": "it writes files",
}
"""Files that start threads by themselves, and why these never touch a tensor."""


def starts_threads(source: str) -> bool:
    """Whether a file starts threads by itself."""
    for node in ast.walk(ast.parse(source)):
        named = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.alias) and node.asname is not None and node.name in STARTERS:
            return True
        if STARTERS & {getattr(each, "attr", getattr(each, "id", None)) for each in named}:
            return True
    return False


def test_threads_are_started_through_one_door() -> None:
    found = {file for file in code_files() if starts_threads((ROOT / file).read_text())}
    assert found == WITHOUT_A_DEVICE.keys(), "start it with threads.start_thread, or say why it touches no device"


@pytest.mark.parametrize(
    "source",
    [
        "import threading\nthreading.Thread(target=print).start()",
        "from threading import Timer\nTimer(1, print)",
        "from concurrent import futures\nfutures.ThreadPoolExecutor(2)",
        "import asyncio\nasyncio.to_thread(print)",
        "from threading import Thread as Other\nOther(target=print)",
        "import threading\nclass Writer(threading.Thread): ...",
    ],
)
def test_another_door_is_found(source: str) -> None:
    assert starts_threads(source)


def test_a_thread_has_its_starters_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current = threading.local()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "device", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(current, "device", device))
    current.device = 3
    seen: list[tuple[str, int, str, bool]] = []

    def work(word: str) -> None:
        thread = threading.current_thread()
        seen.append((word, torch.cuda.current_device(), thread.name, thread.daemon))

    start_thread(work, "done", name="writer").join()
    assert seen == [("done", 3, "writer", True)]


def test_without_a_gpu_no_device_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("a device was set"))
    seen: list[int] = []
    start_thread(seen.append, 1, name="reader").join()
    assert seen == [1]
