"""The exchanges that spread tokens over ranks, on NCCL over two GPUs; with torch alone."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rankmixer_dist.layers.token_mixing import mix_tokens
from rankmixer_dist.parallel.exchange import GroupTransport, TokenExchange
from tests.reference_errors import DEVICES

T, B, D = 4, 3, 16


def exchange(rank: int, ranks: int, device: torch.device) -> None:
    """Scatters, mixes, sums and gathers over the default group, and compares all of it with one process."""
    torch.manual_seed(0)
    whole_TND = torch.randn(T, ranks * B, D)
    gradient_BD = torch.randn(ranks * B, D)
    expected_TND = whole_TND.clone().requires_grad_()
    mixed_TND = mix_tokens(expected_TND) + expected_TND
    mixed_TND.sum(dim=0).backward(gradient_BD)

    rows = slice(rank * B, (rank + 1) * B)
    assert dist.group.WORLD is not None
    transport = GroupTransport(dist.group.WORLD)
    tokens = TokenExchange(transport)
    own_TBD = whole_TND[:, rows].to(device).requires_grad_()
    scattered_tND = tokens.scatter(own_TBD)
    mixed_tND = tokens.mix(scattered_tND, scattered_tND)
    summed_BD = tokens.sum_tokens([mixed_tND.sum(dim=0)])
    summed_BD.backward(gradient_BD[rows].to(device))
    # fp32 sums of four values in another order; seen on a CPU: 2.4e-7.
    close = {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(summed_BD.cpu(), mixed_TND.sum(dim=0)[rows].detach(), **close)
    torch.testing.assert_close(tokens.gather(mixed_tND).cpu(), mixed_TND[:, rows].detach(), rtol=0, atol=0)
    assert expected_TND.grad is not None
    torch.testing.assert_close(own_TBD.grad.cpu(), expected_TND.grad[:, rows], **close)
    assert transport.traffic.seconds() > 0


@contextmanager
def group_of_one() -> Iterator[None]:
    """The default group, of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_a_gpu(rank: int, ranks: int, meeting: str) -> None:
    """A rank of its own process."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    store = dist.FileStore(meeting, ranks)
    dist.init_process_group(
        "nccl", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60), device_id=device
    )
    exchange(rank, ranks, device)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("name", DEVICES)
def test_tokens_are_exchanged_as_in_one_process(name, tmp_path: Path):
    if name == "cpu":
        # One rank in this process, which other tests may have a group of; tests/distributed has more.
        with nullcontext() if dist.is_initialized() else group_of_one():
            exchange(0, 1, torch.device("cpu"))
        return
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, and there are {torch.cuda.device_count()}")
    mp.spawn(on_a_gpu, args=(2, str(tmp_path / "meeting")), nprocs=2)
