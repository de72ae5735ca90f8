"""Batches reach a GPU beside the steps, whole, whoever lets go of their sources."""

import pytest
import torch

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.train.device_copies import DeviceCopies
from tests.reference_errors import device_or_skip

ROWS = 1 << 18


def pinned(number: int) -> Batch:
    """A batch of that number everywhere."""

    def full(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, number, dtype=dtype, pin_memory=True)

    rows = [full(ROWS, dtype=torch.int64) for _ in range(3)]
    ids = JaggedIds(("tag",), full(ROWS, dtype=torch.int64), full(1, ROWS, dtype=torch.int32), (ROWS,))
    return Batch(*rows, full(ROWS), full(ROWS, 2), full(ROWS, 4), ids, float(ROWS))


@pytest.mark.cuda
def test_a_copy_does_not_wait_for_the_step_before_it():
    device = device_or_skip("cuda")
    copies = DeviceCopies(device)
    copies(pinned(0))  # takes the memory, for which the first time may wait
    torch.cuda.synchronize(device)
    torch.cuda._sleep(2_000_000_000)  # a second, about
    step_ends = torch.cuda.Event()
    step_ends.record()
    arrived = copies(pinned(1))
    assert copies._stream is not None
    copies._stream.synchronize()
    assert not step_ends.query(), "the batch was to arrive while the step before it runs"
    assert all(bool((tensor == 1).all()) for tensor in arrived.tensors())


@pytest.mark.cuda
def test_sources_and_copies_are_used_again_only_when_they_are_done_with():
    device = device_or_skip("cuda")
    copies = DeviceCopies(device)
    sums = []
    for number in range(1, 30):
        batch = copies(pinned(number))  # whose source is let go of at once
        torch.cuda._sleep(5_000_000)
        sums.append(torch.stack([tensor.double().mean() for tensor in batch.tensors()]))
    for number, found in enumerate(sums, start=1):
        assert found.tolist() == [number] * len(found)
