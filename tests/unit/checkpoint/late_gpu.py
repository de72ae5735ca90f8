"""GPUs that are late: what is copied from one reaches host memory only when that GPU, and no other, is waited for."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils._pytree import tree_map


@dataclass
class LateGpus:
    """Stands for `torch.cuda` in a test.

    As in CUDA, the current device belongs to a thread and is 0 in a new one.

    waits: (thread, GPU) of each wait, in order.
    """

    waits: list[tuple[str, int]] = field(default_factory=list)
    _thread: threading.local = field(default_factory=threading.local)
    _under_way: dict[int, list[Callable[[], object]]] = field(default_factory=dict)

    def set_device(self, device: int | torch.device) -> None:
        self._thread.device = _index(device)

    def current_device(self) -> int:
        return getattr(self._thread, "device", 0)

    def current_stream(self, device: torch.device | None = None) -> "Stream":
        return Stream(self, self.current_device() if device is None else _index(device))

    def synchronize(self, device: torch.device | None = None) -> None:
        self.current_stream(device).synchronize()

    def later(self, device: torch.device, copy: Callable[[], object]) -> None:
        self._under_way.setdefault(_index(device), []).append(copy)

    def arrive(self, index: int) -> None:
        self.waits.append((threading.current_thread().name, index))
        for copy in self._under_way.pop(index, []):
            copy()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts itself in the place of `torch.cuda`, and ordinary memory in the place of pinned memory."""
        for name in ("set_device", "current_device", "current_stream", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        for name in ("is_available", "is_initialized"):
            monkeypatch.setattr(torch.cuda, name, lambda: True)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self))
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kwargs: empty(*size, **kwargs))
        monkeypatch.setattr(OnGpu, "gpus", self, raising=False)


@dataclass
class Stream:
    gpus: LateGpus
    index: int

    def synchronize(self) -> None:
        self.gpus.arrive(self.index)

    def wait_stream(self, other: "Stream") -> None:
        pass


class Event:
    """Of one stream, on which it was recorded."""

    def __init__(self, gpus: LateGpus) -> None:
        self._gpus, self._stream = gpus, Stream(gpus, -1)

    def record(self, stream: Stream) -> None:
        self._stream = stream

    def synchronize(self) -> None:
        self._stream.synchronize()


class OnGpu(torch.Tensor):
    """A tensor on a GPU; `held` has its values."""

    gpus: LateGpus
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> "OnGpu":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=device
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = next(each.device for each in args if isinstance(each, OnGpu))

        def held(value):
            return value.held if isinstance(value, OnGpu) else value

        if operator is torch.ops.aten.copy_.default:
            return cls._copied(args[0], args[1], *args[2:], **kwargs)
        if operator is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            return cls._copied(torch.zeros_like(args[0].held), args[0], kwargs.get("non_blocking", False))
        result = operator(*tree_map(held, args), **tree_map(held, kwargs))
        return tree_map(lambda value: OnGpu(value, device) if isinstance(value, torch.Tensor) else value, result)

    @classmethod
    def _copied(cls, target: torch.Tensor, source: "OnGpu", non_blocking: bool = False) -> torch.Tensor:
        assert isinstance(source, OnGpu) and not isinstance(target, OnGpu), "only from a GPU into host memory"
        cls.gpus.later(source.device, lambda: target.copy_(source.held))
        if not non_blocking:
            cls.gpus.arrive(_index(source.device))
        return target


def _index(device: int | torch.device) -> int:
    return device if isinstance(device, int) else device.index
