"""A stand-in for a GPU: the device `twin`, whose tensors have a shape, a type and a place, but no values.

It is torch's own backend for Python under its FakeTensorMode. Sizes cost nothing there, an operator that is given
tensors of both the twin and the CPU raises, and so does whatever needs a value. A process that has called `register`
keeps the device until it ends, so all that works on it runs in processes of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration

from tests.rehearsal.census import Census

NAME = "twin"


def register() -> torch.device:
    """Makes the device known to torch, once a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    nn.Module._apply = _apply  # type: ignore[method-assign]
    FakeTensor.numpy = _numpy  # type: ignore[method-assign]
    FakeTensor.__repr__ = _shown  # type: ignore[method-assign]
    return torch.device(NAME, 0)


def is_on_twin(tensor: Tensor) -> bool:
    """Whether it lies on the stand-in."""
    return tensor.device.type == NAME


@contextmanager
def rehearsing(rows: int) -> Iterator[Census]:
    """Inside, tensors have no values; the census, which watches from its `start` on, answers reads.

    What TorchRec reads are numbers of ids, as many as `rows` for each feature; each expert has one row, and a loss that
    another is divided by is 1; nothing else is found, the answer is 0. The host counts the optimizer's steps, from 1.
    """

    def answer(tensor: Tensor, place: str) -> int:
        if not is_on_twin(tensor):
            return int(tensor.is_floating_point())
        if place.startswith("torchrec/"):
            return rows
        return int("layers/experts.py" in place or "path_gap" in place)

    # `torch.tensor` only here: torch compiles functions that call it as they are imported.
    torch.tensor = _tensor
    try:
        with FakeTensorMode(), Census(is_on_twin, answer) as census:
            _watching.append(census)
            yield census
    finally:
        _watching.clear()
        torch.tensor = _torch_tensor


def synchronized() -> None:
    """Tells the census that somebody waits for the whole device."""
    if _watching:
        _watching[-1].note("sync")


_watching: list[Census] = []
_module_apply, _torch_tensor = nn.Module._apply, torch.tensor


def _apply(module: nn.Module, move: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` swaps parameters without values, and with them what was noted on them: that is kept here.

    The mode holds weak references to what it makes, for which torch would refuse; the parameters stay who they are.
    """
    noted = {name: dict(parameter.__dict__) for name, parameter in module._parameters.items() if parameter is not None}
    weakref, torch.utils.weakref = torch.utils.weakref, SimpleNamespace(getweakrefs=lambda tensor: [])
    try:
        _module_apply(module, move, recurse)
    finally:
        torch.utils.weakref = weakref
    for name, notes in noted.items():
        for key, value in notes.items():
            module._parameters[name].__dict__.setdefault(key, value)
    return module


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """`torch.tensor`, which knows no backend in Python."""
    made = _torch_tensor(data, *args, **kwargs)
    if device is None or torch.device(device).type != NAME:
        return made
    _watching[-1].note("upload")
    return torch.empty(made.shape, dtype=made.dtype, device=device)


def _numpy(tensor: Tensor, **kwargs: Any) -> np.ndarray:
    """Zeros, where the tensor lies on the host."""
    assert not is_on_twin(tensor), "numpy reads host memory only"
    return np.zeros(tensor.shape, dtype=str(tensor.dtype).removeprefix("torch."))


def _shown(tensor: Tensor, **kwargs: Any) -> str:
    """Who shows a tensor asks for its values, or in a message for a scalar's."""
    if is_on_twin(tensor) and _watching:
        _watching[-1].note("read")
    return f"tensor(..., shape={tuple(tensor.shape)}, dtype={tensor.dtype}, device={tensor.device})"
