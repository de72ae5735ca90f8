"""A backbone whose tokens are spread over ranks, each the owner of some of them (token parallel, arXiv 2602.06563).

The mathematics is the backbone's own: what is here takes its tokens past its seams (`models.seams`).
"""

import functools
import itertools
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn

from rankmixer_dist.layers.per_token_ffn import PerTokenFFN, PerTokenSwiGLU
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport
from rankmixer_dist.models.backbone import Backbone
from rankmixer_dist.models.seams import Feed, Home, Mix, Seam, Spreadable, WholeCourse, here, passed, share_of_mean
from rankmixer_dist.parallel.exchange import TokenExchange, Traffic
from rankmixer_dist.parallel.expert_groups import ExpertGrid, ExpertsBelow, keep_own_share

Spread = Literal["token", "plain"]
"""token: every rank keeps its tokens from where they may lie at home to the pooling, and token mixing is the exchange.
plain: tokens go to their owners before each per-token FFN and come back after it."""

PER_TOKEN_LAYERS: tuple[type[nn.Module], ...] = (PerTokenFFN, PerTokenSwiGLU, PerTokenMoE)
"""Layers [T, B, D] -> [T, B, D] that treat each token and row alone, and whose parameters all have T, or T times as
many as a token has, in front: they work on any of the tokens with these tokens' share of the parameters."""


def spread(backbone: Spreadable, grid: ExpertGrid, mode: Spread, pieces: int = 1) -> Traffic:
    """Makes `backbone` a rank's part of it, in place: its tokens' weights, under the names that they had.

    In mode "token" a rank's rows go through in that many `pieces`, each of which computes while others are exchanged.

    All ranks call it, with the same weights. Gradients follow the convention of `parallel.engine`: an owner sees its
    tokens of all rows of its group, a norm some tokens of these rows, so that owned parameters need the sum over the
    ranks that own the same, and all others that over all ranks, both divided by the number of ranks.

    Returns:
        What the backbone is going to send.

    Raises:
        ValueError: the tokens cannot be shared out evenly, or tokens meet elsewhere than in token mixing.
    """
    if mode not in get_args(Spread):
        raise ValueError(f"mode {mode!r} is unknown; use 'token' or 'plain'")
    check_spreadable(backbone, grid.size)
    layers = backbone.fed_layers()
    if grid.size > 1:
        for layer in layers:
            keep_own_share(layer, grid)
        backbone.add_module("experts_below", ExpertsBelow(grid))
    transport = grid.transport()
    routes = any(isinstance(layer, PerTokenMoE) for layer in layers)
    passes = _ByToken if mode == "token" else _Plainly
    backbone.passes = passes(TokenExchange(transport), transport.traffic, backbone.num_tokens, routes, pieces)
    return transport.traffic


def check_spreadable(backbone: Backbone, size: int) -> None:
    """Makes sure that a group of `size` ranks can share out `backbone`.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(backbone, Spreadable):
        raise ValueError(
            "only rankmixer, tokenmixer_large and what else names its seams can be spread; use expert size 1"
        )
    try:
        backbone.check_exchanges()
    except ValueError as error:
        raise ValueError(f"{error}; use expert size 1") from error
    if not all(isinstance(layer, PER_TOKEN_LAYERS) for layer in backbone.fed_layers()):
        raise ValueError("only per-token FFNs and experts can be spread; use expert size 1 or leave shared_ffn out")
    tokens = backbone.num_tokens
    if tokens % size:
        usable = ", ".join(str(n) for n in range(1, tokens + 1) if tokens % n == 0)
        raise ValueError(f"expert size {size} does not divide the {tokens} tokens; use one of {usable}")


def traffic_of(module: nn.Module) -> Traffic | None:
    """What the part of a model sends that is spread over ranks, if any is."""
    passes = (part.passes for part in module.modules() if isinstance(part, Spreadable))
    return next((each.traffic for each in passes if isinstance(each, _Spread)), None)


@dataclass(frozen=True)
class _Spread:
    """`Passes` over the ranks of a group, all of which have equally many rows.

    routes: whether there are mixtures, which have to know of the group's rows.
    """

    exchange: TokenExchange
    traffic: Traffic
    num_tokens: int
    routes: bool
    pieces: int

    def rows_of_group(self, rows: RoutedRows | None, pieces: int) -> Sequence[RoutedRows | None]:
        """What is known of the group's rows, piece by piece."""
        if rows is None or not self.routes:
            return [None] * pieces
        return self.exchange.rows_of_group(rows, pieces)


class _Plainly(_Spread):
    """Two all-to-alls around each FFN, forward, to the owners of the tokens and back; backward mirrors them."""

    def __call__(
        self, course: Callable[[Tensor], WholeCourse], x_TBD: Tensor, rows: RoutedRows | None
    ) -> tuple[Sequence[Tensor], Iterable[RoutingReport]]:
        (known,) = self.rows_of_group(rows, 1)
        reports: list[RoutingReport] = []

        def at_seam(seam: Seam) -> Tensor:
            if not isinstance(seam, Feed):
                return here(seam, known, reports)
            of_others = Feed(seam.layer, self.exchange.scatter(seam.x_TBD))
            return self.exchange.gather(here(of_others, known, reports))

        ends = passed(course(x_TBD), at_seam)
        return [share_of_mean(end_TBD, self.num_tokens) for end_TBD in ends], reports


class _ByToken(_Spread):
    """An all-to-all where tokens go home and at each exchange from there on, forward, and one reduce-scatter for each
    vector that is pooled; backward mirrors them."""

    def __call__(
        self, course: Callable[[Tensor], WholeCourse], x_TBD: Tensor, rows: RoutedRows | None
    ) -> tuple[Sequence[Tensor], Iterable[RoutingReport]]:
        parts = x_TBD.chunk(self.pieces, dim=1)
        known = self.rows_of_group(rows, len(parts))
        pieces = [_Piece(self.exchange, course(part), of) for part, of in zip(parts, known, strict=True)]
        for _ in itertools.zip_longest(*(piece.legs() for piece in pieces)):
            pass  # while a piece is under way, the FFNs of another compute
        reports = [functools.reduce(operator.add, of_all) for of_all in zip(*(p.reports for p in pieces), strict=True)]
        pooled = []
        for ends in zip(*(piece.ends for piece in pieces), strict=True):
            pooled.append(self.exchange.sum_tokens([share_of_mean(x_tND, self.num_tokens) for x_tND in ends]))
        return pooled, reports


@dataclass
class _Piece:
    """Some of a rank's rows on their way past the seams, and from home on as many rows of each rank of the group."""

    exchange: TokenExchange
    course: WholeCourse
    rows: RoutedRows | None
    at_home: bool = False
    reports: list[RoutingReport] = field(default_factory=list)
    ends: tuple[Tensor, ...] = ()

    def legs(self) -> Iterator[None]:
        """Goes on to the next exchange each time, and in the end leaves its `ends`."""
        seam = next(self.course)
        while True:
            came = yield from self._at_seam(seam)
            try:
                seam = self.course.send(came)
            except StopIteration as end:
                self.ends = end.value
                return
            del came  # else it would take memory while the next layer computes

    def _at_seam(self, seam: Seam) -> Generator[None, None, Tensor]:
        match seam:
            case Mix() if self.at_home:
                start = self.exchange.start_mix(seam.x_TBD)
                yield
                return self.exchange.finish_mix(start, seam.residual_TBD)
            case Home():
                self.at_home, start = True, self.exchange.start_scatter(seam.x_TBD)
                yield
                return self.exchange.finish_scatter(start)
            case _:
                return here(seam, self.rows, self.reports)
