"""What a training pass keeps in memory for its backward, counted without a device."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], object], *, besides: Iterable[Tensor] = ()) -> int:
    """Bytes of all that autograd saves while `forward` runs, memory that tensors share counted once.

    On the meta device this costs no memory and little time whatever the sizes. What a kernel keeps for itself and what
    lives only during the backward pass are not in it.

    Args:
        forward: a forward pass.
        besides: tensors that are there anyway, as weights are.
    """
    there = {tensor.untyped_storage()._cdata for tensor in besides}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in there:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())
