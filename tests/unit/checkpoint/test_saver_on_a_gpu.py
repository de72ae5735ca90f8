"""Saving from a GPU that is not the first one: every byte has arrived before it is written."""

import dataclasses

import pytest
import torch

from rankmixer_dist.checkpoint import host_copies
from rankmixer_dist.checkpoint.folder import checkpoint_path
from rankmixer_dist.checkpoint.saver import Saver
from rankmixer_dist.checkpoint.storage import read_whole
from rankmixer_dist.pieces import Piece, whole
from tests.unit.checkpoint.conftest import about
from tests.unit.checkpoint.late_gpu import LateGpus, OnGpu

GPU = torch.device("cuda", 3)


def on_gpu(piece: Piece) -> Piece:
    return dataclasses.replace(piece, tensor=OnGpu(piece.tensor, GPU))


@pytest.fixture
def gpus(monkeypatch) -> LateGpus:
    """Four GPUs; the thread of the test works on the last."""
    gpus = LateGpus()
    gpus.install(monkeypatch)
    gpus.set_device(GPU)
    monkeypatch.setattr(host_copies, "STAGE_BYTES", 64)  # several stages a tensor
    return gpus


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_a_gpu_holds_at_the_call_is_what_is_saved(tmp_path, one_rank, gpus, asynchronous):
    topology = dataclasses.replace(one_rank, device=GPU)
    saver = Saver(tmp_path, topology, keep=3, asynchronous=asynchronous)
    for step in (1, 2, 3):  # later saves find the memory of the first
        table, moment = torch.randn(20, 3), torch.randn(40).to(torch.bfloat16)
        held = [
            whole("tables/video.weight", table),
            whole("dense/layer.exp_avg", moment),
            whole("dense/scale.weight", torch.tensor(2.5)),
            whole("tables/none.weight", torch.ones(0, 3)),
        ]
        expected = {piece.key: piece.tensor.clone() for piece in held}
        on_host = whole("random/cpu-00000", torch.arange(50, dtype=torch.uint8))
        saver.save(about(step), [on_host, *map(on_gpu, held)])
        for piece in held:
            piece.tensor.zero_()  # training goes on
        saver.finish()
        read = read_whole(checkpoint_path(tmp_path, step) / "tensors")
        assert {key: torch.equal(read[key], value) for key, value in expected.items()} == dict.fromkeys(expected, True)
    assert {index for _, index in gpus.waits} == {GPU.index}
    if asynchronous:  # the writing thread has nothing to do with a GPU
        assert {name for name, _ in gpus.waits} == {"MainThread"}


def test_copies_take_their_own_size_and_two_stages_of_pinned_memory(gpus, monkeypatch):
    made = []
    empty = torch.empty

    def counted(size, *, dtype, pin_memory=False):
        tensor = empty(size, dtype=dtype)
        made.append((tensor.nbytes, pin_memory))
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    copies = host_copies.HostCopies()
    pieces = [on_gpu(whole("a", torch.randn(100))), on_gpu(whole("b", torch.randn(9)))]
    for _ in range(2):
        copies.take(pieces)
    assert sorted(made) == [(36, False), (64, True), (64, True), (400, False)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpus_bytes_have_arrived_when_the_copies_are_handed_out():
    gpu = torch.device("cuda", torch.cuda.device_count() - 1)
    held = [
        whole("of two stages", torch.randn(3, 10_000_000, device=gpu)),
        whole("turned", torch.randn(5, 7, device=gpu).t()),
        whole("scalar", torch.tensor(2.5, device=gpu, dtype=torch.bfloat16)),
    ]
    expected = [piece.tensor.cpu() for piece in held]
    copies = host_copies.HostCopies().take(held)
    for piece in held:
        piece.tensor.zero_()
    for copy, value in zip(copies, expected, strict=True):
        assert torch.equal(copy.tensor, value)
        assert not copy.tensor.is_pinned()
