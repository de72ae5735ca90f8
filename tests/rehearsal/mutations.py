"""What somebody might do to the project by mistake, for the length of a `with` block: the rehearsal has to find it."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def _changed(owner: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """With `change` of what stands there in its place."""
    before = getattr(owner, name)
    setattr(owner, name, change(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def _read() -> AbstractContextManager[None]:
    """An `.item()` in the step."""
    from rankmixer_dist.train import step

    def change(loss: Any) -> Any:
        def read(*args: Any) -> Any:
            total, per_task_K = loss(*args)
            total.item()
            return total, per_task_K

        return read

    return _changed(step, "multi_task_loss", change)


def _shown() -> AbstractContextManager[None]:
    """A figure of the step in a message."""
    from rankmixer_dist.train import loop

    def change(count: Any) -> Any:
        def shown(batch: Any) -> Any:
            counts_2K = count(batch)
            f"{counts_2K}"
            return counts_2K

        return shown

    return _changed(loop, "label_counts", change)


def _mixture() -> AbstractContextManager[None]:
    """A tensor of the CPU in a layer."""
    from rankmixer_dist.layers.per_token_ffn import PerTokenFFN

    return _changed(
        PerTokenFFN, "forward", lambda forward: lambda layer, x_TBD: forward(layer, x_TBD) + torch.ones(x_TBD.shape[-1])
    )


def _waiting_copy() -> AbstractContextManager[None]:
    """A part of the batch that is copied to the device by a copy which waits."""
    from rankmixer_dist.train import loop

    def change(copies: Any) -> Any:
        def waiting(device: torch.device) -> Any:
            to_device = copies(device)
            return lambda batch: dataclasses.replace(to_device(batch), weight_B=batch.weight_B.to(device))

        return waiting

    return _changed(loop, "DeviceCopies", change)


MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "read": _read,
    "shown": _shown,
    "mixture": _mixture,
    "waiting copy": _waiting_copy,
}
