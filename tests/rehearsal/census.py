"""Where a step makes the host wait for the device, by place, and how many operators it gives to it."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
PROJECT = ("rankmixer_dist/", "data_pipeline/", "launch/")
LIBRARIES = ("deepspeed/", "torchrec/", "fbgemm_gpu/")

aten = torch.ops.aten
_SCALARS = {aten._local_scalar_dense.default}
# Their output's size depends on values, which the device has to tell the host that was not told an `output_size`.
_SIZES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.repeat_interleave.Tensor, aten.equal.default,
}  # fmt: skip
_COPIES = {aten._to_copy.default, aten.copy_.default}


class Census(TorchDispatchMode):
    """Counts, from `start` to `stop`, what happens in its `with` block.

    `places`: how often a place did what makes the host wait: "read file:function" (a value of the device), "upload
    file:function" (a copy to the device out of memory that is not pinned) or "sync file:function"; see `place`.
    `operators`: how often each was given to the device, views left out. `largest`: the largest tensor made, in bytes.

    Args:
        on_device: whether a tensor lies on the device.
        answer: what a place is told that reads a tensor, where tensors have no values; None where they have.
    """

    def __init__(self, on_device: Callable[[Tensor], bool], answer: Callable[[Tensor, str], int] | None = None) -> None:
        super().__init__()
        self._on_device, self._answer, self._counts = on_device, answer, False
        self._forget()

    def _forget(self) -> None:
        self.places: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.largest = 0

    def start(self) -> None:
        """Counts from here on."""
        self._counts = True

    def stop(self) -> None:
        """Counts no more."""
        self._counts = False

    def take(self) -> dict[str, Any]:
        """The counts, which then begin anew."""
        self.stop()
        taken = {"places": self.places, "operators": self.operators, "largest": self.largest}
        self._forget()
        return taken

    def note(self, what: str) -> None:
        """Counts one more at the place that is running."""
        if self._counts:
            self.places[f"{what} {place()}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SCALARS:
            if self._on_device(args[0]):
                self.note("read")
            if self._answer is not None:
                return _scalar(args[0], self._answer(args[0], place()))
            return func(*args, **kwargs)
        if self._counts and func in _SIZES and kwargs.get("output_size") is None and self._on_device(args[0]):
            self.note("read")
        if self._answer is not None and func is aten.nonzero.default:
            # One of the last dimension each, as many as there are sums over it.
            found = args[0].numel() // max(args[0].shape[-1], 1)
            return args[0].new_empty(found, args[0].dim(), dtype=torch.int64)
        made = func(*args, **kwargs)
        if self._counts and func in _COPIES:
            self._count_copy(args, kwargs, made)
        if self._counts and not func.is_view:
            self._count_made(func, made)
        return made

    def _count_copy(self, args: Any, kwargs: Any, made: Any) -> None:
        source, target = (args[1], args[0]) if isinstance(args[1:] and args[1], Tensor) else (args[0], made)
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
        if self._on_device(source) and not self._on_device(target) and waits:
            self.note("read")
        if self._on_device(target) and not self._on_device(source) and waits:
            self.note("upload")

    def _count_made(self, func: Any, made: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor) and self._on_device(leaf)]
        if tensors:
            self.operators[str(func)] += 1
            self.largest = max(self.largest, *(each.numel() * each.element_size() for each in tensors))


def _scalar(tensor: Tensor, answer: int) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return bool(answer)
    return float(answer) if tensor.is_floating_point() else answer


def place() -> str:
    """The innermost running function of the project as `file:function`, behind that of a library which it called."""
    frame, library = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if "site-packages/" in file:
            file = file.rpartition("site-packages/")[2]
        elif file.startswith(str(ROOT)):
            file = str(Path(file).relative_to(ROOT))
        # A comprehension is a function of its own in Python 3.11 alone.
        here = f"{file}:{frame.f_code.co_qualname.partition('.<locals>.<listcomp>')[0]}"
        if file.startswith(PROJECT):
            return f"{library} from {here}" if library else here
        if file.startswith(LIBRARIES):
            library = library or here
        frame = frame.f_back
    return library or "autograd"


def unknown(found: Iterable[str], allowed: Mapping[str, str]) -> list[str]:
    """Places that nobody has allowed."""
    return sorted(set(found) - set(allowed))


def stale(found: Iterable[str], allowed: Mapping[str, str]) -> list[str]:
    """Allowed places where nothing happens any more."""
    return sorted(set(allowed) - set(found))
