"""Batches on their way to the device, beside what runs there."""

import torch

from rankmixer_dist.ahead import ahead_stream
from rankmixer_dist.batch import Batch


class DeviceCopies:
    """Copies batches to a device; to a GPU in `ahead_stream`, beside the steps that the host has queued.

    What the stream of the steps does next waits for the copy: the batch's own step, or with look-ahead the step of the
    batch before it, which is queued after the copy. The source has to be pinned to overlap: torch then keeps
    it until the copy is done, whoever lets go of it. The copies' memory is not given away before the steps' stream is
    done with them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = ahead_stream(device)

    def __call__(self, batch: Batch) -> Batch:
        """The same batch on the device."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device)
        steps = torch.cuda.current_stream(self._device)
        steps.wait_stream(self._stream)
        for tensor in copied.tensors():
            tensor.record_stream(steps)
        return copied
