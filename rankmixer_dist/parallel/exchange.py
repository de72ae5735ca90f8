"""The exchanges that spread a backbone's tokens over the ranks of a group: differentiable, counted, with local twins.

Legend: n ranks of a group, t = T / n tokens a rank, N = n B rows of the group, rank by rank; all ranks have equal B.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.parallel.spans import Spans, mark


class Traffic:
    """Exchanges, bytes that this rank sent to other ranks in them, and how long they took, since the last `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Counts from zero again, as at the beginning of a step."""
        self.exchanges_forward = self.bytes_forward = self.exchanges_backward = self.bytes_backward = 0
        self._spans = Spans()

    def seconds(self) -> float:
        """Time in exchanges, waiting for the other ranks included; on a GPU this waits until they are done."""
        return self._spans.seconds()

    @contextmanager
    def timed(self, device: torch.device) -> Iterator[None]:
        """Adds the time of what is exchanged in the block, on a GPU that between two marks in the stream."""
        start = mark(device)
        yield
        self._spans.add(start, mark(device))

    def count_forward(self, sent: int) -> None:
        """Adds an exchange of the forward pass."""
        self.exchanges_forward += 1
        self.bytes_forward += sent

    def count_backward(self, sent: int) -> None:
        """Adds an exchange of the backward pass."""
        self.exchanges_backward += 1
        self.bytes_backward += sent


class Transport(Protocol):
    """The seam between the layouts below and the ranks; n parts go in, one for each rank of the group."""

    size: int
    traffic: Traffic

    def start(self, parts_nX: Tensor) -> "Started":
        """[n, ...] -> [n, ...], still under way: part q goes to rank q, part r of the result comes from rank r."""
        ...

    def reduce_scatter(self, parts_nX: Tensor) -> Tensor:
        """[n, ...] -> [...]: this rank's part, summed over the ranks."""
        ...

    def all_gather(self, part_X: Tensor) -> Tensor:
        """[...] -> [n, ...]: every rank's part; has no gradient."""
        ...


class LocalTransport:
    """The null twin: a group of one, which sends nothing."""

    size = 1

    def __init__(self) -> None:
        self.traffic = Traffic()

    def start(self, parts_nX: Tensor) -> "Started":
        return Started(parts_nX)

    def reduce_scatter(self, parts_nX: Tensor) -> Tensor:
        return parts_nX.squeeze(0)

    def all_gather(self, part_X: Tensor) -> Tensor:
        return part_X.unsqueeze(0)


class GroupTransport:
    """Exchanges over a process group, gloo or NCCL; both have all three collectives that this takes."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.size = dist.get_world_size(group)
        self.traffic = Traffic()
        self._group = group

    def start(self, parts_nX: Tensor) -> "Started":
        flight = _Flight(self._group, self.traffic)
        return Started(_Start.apply(parts_nX, flight), flight)

    def reduce_scatter(self, parts_nX: Tensor) -> Tensor:
        return _ReduceScatter.apply(parts_nX, self._group, self.traffic)

    def all_gather(self, part_X: Tensor) -> Tensor:
        part_X = part_X.contiguous()
        self.traffic.count_forward((self.size - 1) * part_X.numel() * part_X.element_size())
        parts_nX = part_X.new_empty(self.size, *part_X.shape)
        with self.traffic.timed(part_X.device):
            dist.all_gather_single(parts_nX.flatten(0, 1), part_X, group=self._group)
        return parts_nX


@dataclass(frozen=True)
class Started:
    """An all-to-all under way; other work can be done until `finish`, and likewise in the backward pass."""

    parts_nX: Tensor
    flight: "_Flight | None" = None

    def finish(self) -> Tensor:
        """Waits for what was sent; called once."""
        return self.parts_nX if self.flight is None else _Finish.apply(self.parts_nX, self.flight)


class _Flight:
    """One all-to-all and, later, that of its gradient."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic) -> None:
        self._group, self.traffic = group, traffic
        self._work: dist.Work | None = None
        self._sent: Tensor | None = None

    def depart(self, parts_nX: Tensor) -> Tensor:
        self._sent = parts_nX.contiguous()  # kept until it has arrived
        received_nX = torch.empty_like(self._sent)
        with self.traffic.timed(parts_nX.device):
            self._work = dist.all_to_all_single(received_nX, self._sent, group=self._group, async_op=True)
        return received_nX

    def arrive(self) -> None:
        assert self._work is not None and self._sent is not None
        with self.traffic.timed(self._sent.device):
            self._work.wait()
        self._work = self._sent = None


# With equal parts the exchange is its own adjoint: a part's gradient goes back to where the part came from, under way
# from the backward of `_Finish` to that of `_Start`.


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts_nX: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.traffic.count_forward(_bytes_to_others(parts_nX))
        return flight.depart(parts_nX)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.flight.arrive()
        return gradients[0], None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, received_nX: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.arrive()
        return received_nX.view_as(received_nX)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.flight.traffic.count_backward(_bytes_to_others(gradients[0]))
        return ctx.flight.depart(gradients[0]), None


class _ReduceScatter(torch.autograd.Function):
    """Backward every rank's gradient goes to all."""

    @staticmethod
    def forward(ctx: Any, parts_nX: Tensor, group: dist.ProcessGroup, traffic: Traffic) -> Tensor:
        ctx.group, ctx.traffic, ctx.size = group, traffic, len(parts_nX)
        traffic.count_forward(_bytes_to_others(parts_nX))
        mine = torch.empty_like(parts_nX[0])
        with traffic.timed(mine.device):
            dist.reduce_scatter_single(mine, parts_nX.contiguous().flatten(0, 1), group=group)
        return mine

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mine = gradients[0].contiguous()
        ctx.traffic.count_backward((ctx.size - 1) * mine.numel() * mine.element_size())
        parts = mine.new_empty(ctx.size * mine.shape[0], *mine.shape[1:])
        with ctx.traffic.timed(mine.device):
            dist.all_gather_single(parts, mine, group=ctx.group)
        return parts.unflatten(0, (ctx.size, -1)), None, None


def _bytes_to_others(parts_nX: Tensor) -> int:
    return (len(parts_nX) - 1) * parts_nX[0].numel() * parts_nX.element_size()


class TokenExchange:
    """Moves between a rank's layouts: all T tokens of its own B rows, and its own t tokens of the group's N rows.

    An exchange costs at most one copy on either side of the wire: what is sent has to be packed by destination, and
    what arrives lies by source.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def start_scatter(self, x_TBD: Tensor) -> Started:
        """[T, B, D] of own rows sets out to be [t, N, D] of own tokens; what is sent is packed already."""
        return self._transport.start(x_TBD.unflatten(0, (self._transport.size, -1)))

    def finish_scatter(self, started: Started) -> Tensor:
        """[t, N, D], contiguous."""
        return started.finish().transpose(0, 1).flatten(1, 2)

    def scatter(self, x_TBD: Tensor) -> Tensor:
        """Both at once."""
        return self.finish_scatter(self.start_scatter(x_TBD))

    def gather(self, x_tND: Tensor) -> Tensor:
        """The inverse of `scatter`; what arrives is in place already."""
        parts_ntBD = x_tND.unflatten(1, (self._transport.size, -1)).transpose(0, 1)
        return self._transport.start(parts_ntBD).finish().flatten(0, 1)

    def start_mix(self, x_tND: Tensor) -> Started:
        """Token mixing (eq. 3-5) across owners sets out: [t, N, D] of own tokens.

        Head h of all tokens belongs to mixed token h, so a rank sends to each other one the heads that are its own;
        packing them is the permutation that mixing without ranks does too.
        """
        heads_tNnhd = x_tND.unflatten(2, (self._transport.size, len(x_tND), -1))
        return self._transport.start(heads_tNnhd.permute(2, 3, 1, 0, 4).contiguous())

    def finish_mix(self, started: Started, residual_tND: Tensor | None = None) -> Tensor:
        """[t, N, D] of own mixed tokens, contiguous.

        Adding the residual puts what arrives in its place on the way, which saves a copy.
        """
        mixed_hNnE = started.finish().permute(1, 2, 0, 3, 4).flatten(3)
        if residual_tND is not None:
            mixed_hNnE = residual_tND.unflatten(2, (self._transport.size, -1)) + mixed_hNnE
        return mixed_hNnE.flatten(2)

    def mix(self, x_tND: Tensor, residual_tND: Tensor | None = None) -> Tensor:
        """Both at once."""
        return self.finish_mix(self.start_mix(x_tND), residual_tND)

    def rows_of_group(self, rows: RoutedRows, pieces: int) -> list[RoutedRows]:
        """What is known of own B rows -> of the group's, in that many pieces of `scatter`; a byte a row."""
        bits_B = rows.real_B.to(torch.uint8) + 2 * rows.served_B.to(torch.uint8)
        bits_nB = self._transport.all_gather(bits_B)
        return [RoutedRows(bits % 2 == 1, bits >= 2) for bits in (b.flatten() for b in bits_nB.chunk(pieces, dim=1))]

    def sum_tokens(self, partials: Sequence[Tensor]) -> Tensor:
        """Pieces [N, D], sums over own tokens -> [B, D], sums over all tokens of own rows."""
        parts_nBD = torch.cat([partial_ND.unflatten(0, (self._transport.size, -1)) for partial_ND in partials], dim=1)
        return self._transport.reduce_scatter(parts_nBD)
