"""Copies of a rank's pieces in host memory, whose bytes have arrived when they are handed out."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rankmixer_dist.pieces import Piece

STAGE_BYTES = 1 << 26
"""Of pinned memory; a power of two, to which torch rounds up what it pins."""


class HostCopies:
    """Ordinary memory for the copies, kept from one save to the next: fresh memory costs more than the copy.

    A GPU copies at full speed only into pinned memory. By default torch rounds each pinned tensor up to a power of two
    and gives none back, and pinned memory cannot be swapped: of the dense state of the 1B shape, 13.3 GB with both
    moments, it would pin 25.8 GB for as long as the run lasts. So the copies are ordinary memory of their exact size,
    and what comes from a GPU passes through two pinned stages of 64 MiB: one is filled while the other is emptied.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._stages: _Stages | None = None

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Copies of `pieces`, which may change as soon as this returns; the next call overwrites the copies.

        What is still to be written into the pieces must have been queued on their device's current stream.
        """
        copies = [Piece(piece.key, piece.shape, piece.offsets, self._room(piece)) for piece in pieces]
        on_gpu = []
        for piece, copy in zip(pieces, copies, strict=True):
            if piece.tensor.device.type == "cpu":
                copy.tensor.copy_(piece.tensor.detach())
            else:
                on_gpu.append((piece.tensor.detach(), copy.tensor))
        if on_gpu:
            self._stages = self._stages or _Stages()
            self._stages.copy(on_gpu)
        return copies

    def _room(self, piece: Piece) -> Tensor:
        key = (piece.key, piece.offsets)
        room = self._kept.get(key)
        if room is None or room.shape != piece.tensor.shape:
            room = self._kept[key] = torch.empty(piece.tensor.shape, dtype=piece.tensor.dtype)
        return room


class _Stages:
    """Two pinned stages between a GPU and ordinary memory."""

    def __init__(self) -> None:
        self._stages = [torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._filled = [torch.cuda.Event(), torch.cuda.Event()]

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Copies each first tensor, on a GPU, into the second, in host memory; returns when the last byte is there."""
        turn = 0
        under_way: tuple[Tensor, Tensor] | None = None  # with its source, which stays until the copy has arrived
        for source, target in _chunks(pairs):
            self._stages[turn][: source.numel()].copy_(source, non_blocking=True)
            self._filled[turn].record(torch.cuda.current_stream(source.device))
            turn = 1 - turn
            if under_way is not None:
                self._empty(turn, under_way[1])
            under_way = source, target
        if under_way is not None:
            self._empty(1 - turn, under_way[1])

    def _empty(self, turn: int, target: Tensor) -> None:
        self._filled[turn].synchronize()
        target.copy_(self._stages[turn][: target.numel()])


def _chunks(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The bytes of each pair, at most a stage at a time."""
    for source, target in pairs:
        sent, received = (each.contiguous().view(-1).view(torch.uint8) for each in (source, target))
        for start in range(0, received.numel(), STAGE_BYTES):
            bytes_ = min(STAGE_BYTES, received.numel() - start)
            yield sent.narrow(0, start, bytes_), received.narrow(0, start, bytes_)
