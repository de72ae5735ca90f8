"""What somebody might do to the project by mistake, for the length of a `with` block: the rehearsal has to find it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def _read() -> Iterator[None]:
    """An `.item()` in the step."""
    from rankmixer_dist.train import step

    loss = step.multi_task_loss

    def read(*args: Any) -> Any:
        total, per_task_K = loss(*args)
        total.item()
        return total, per_task_K

    step.multi_task_loss = read
    try:
        yield
    finally:
        step.multi_task_loss = loss


@contextmanager
def _mixture() -> Iterator[None]:
    """A tensor of the CPU in a layer."""
    from rankmixer_dist.layers.per_token_ffn import PerTokenFFN

    forward = PerTokenFFN.forward
    PerTokenFFN.forward = lambda layer, x_TBD: forward(layer, x_TBD) + torch.ones(x_TBD.shape[-1])
    try:
        yield
    finally:
        PerTokenFFN.forward = forward


MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "read": _read,
    "mixture": _mixture,
}
