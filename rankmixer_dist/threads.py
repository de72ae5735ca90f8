"""Threads that work on the device of whoever starts them."""

import threading
from collections.abc import Callable
from typing import Any

import torch


def start_thread(work: Callable[..., None], *arguments: Any, name: str) -> threading.Thread:
    """Starts a daemon thread whose current device is that of the thread that calls this.

    CUDA keeps a current device for each thread, and a new thread begins on GPU 0. On every other rank such a thread
    would wait for the GPU of rank 0 instead of its own, and take memory there for a context.

    Threads that never touch a tensor need not be started here; a test lists them with their reason.
    """
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def on_device() -> None:
        if device is not None:
            torch.cuda.set_device(device)
        work(*arguments)

    thread = threading.Thread(target=on_device, name=name, daemon=True)
    thread.start()
    return thread
