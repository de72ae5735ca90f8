"""RankMixer with per-token FFNs or experts spread over ranks, each the owner of some tokens (token parallel, arXiv
2602.06563)."""

import functools
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport
from rankmixer_dist.models.backbone import Backbone
from rankmixer_dist.models.rankmixer import RankMixer, RankMixerBlock, routed
from rankmixer_dist.parallel.exchange import LocalTransport, TokenExchange, Traffic
from rankmixer_dist.parallel.expert_groups import ExpertGrid, ExpertsBelow, keep_own_share

Spread = Literal["token", "plain"]
"""token: every rank keeps its tokens from the first block to the pooling, and token mixing is the exchange.
plain: tokens go to their owners before each per-token FFN and come back after it."""

PER_TOKEN_LAYERS: tuple[type[nn.Module], ...] = (PerTokenFFN, PerTokenMoE)
"""Layers [T, B, D] -> [T, B, D] that treat each token and row alone, and whose parameters all have T, or T times as
many as a token has, in front: they work on any of the tokens with these tokens' share of the parameters."""


def spread(backbone: RankMixer, grid: ExpertGrid, mode: Spread, pieces: int = 1) -> "SpreadRankMixer":
    """A rank's part of `backbone`, which is used up: its tokens' weights, under the names that they have there.

    In mode "token" a rank's rows go through in that many `pieces`, each of which computes while others are exchanged.

    All ranks call it, with the same weights. Gradients follow the convention of `parallel.engine`: an owner sees its
    tokens of all rows of its group, a norm some tokens of these rows, so that owned parameters need the sum over the
    ranks that own the same, and all others that over all ranks, both divided by the number of ranks.

    Raises:
        ValueError: the tokens cannot be shared out evenly, or tokens meet elsewhere than in token mixing.
    """
    if mode not in get_args(Spread):
        raise ValueError(f"mode {mode!r} is unknown; use 'token' or 'plain'")
    check_spreadable(backbone, grid.size)
    return SpreadRankMixer(backbone, grid, mode, pieces)


def check_spreadable(backbone: Backbone, size: int) -> None:
    """Makes sure that a group of `size` ranks can share out `backbone`.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(backbone, RankMixer) or backbone.mixing != "heads":
        raise ValueError("only the rankmixer backbone with mixing 'heads' can be spread; use expert size 1")
    if backbone.num_heads not in (None, backbone.num_tokens):
        raise ValueError("a backbone whose num_heads is not the number of tokens cannot be spread; use expert size 1")
    if not all(isinstance(block.ffn, PER_TOKEN_LAYERS) for block in _blocks(backbone)):
        raise ValueError("only per-token FFNs and experts can be spread; use expert size 1 or leave shared_ffn out")
    tokens = backbone.num_tokens
    if tokens % size:
        usable = ", ".join(str(n) for n in range(1, tokens + 1) if tokens % n == 0)
        raise ValueError(f"expert size {size} does not divide the {tokens} tokens; use one of {usable}")


class SpreadRankMixer(Backbone):
    """Computes on its group what the backbone computes on one rank; built by `spread`.

    mode "token": L all-to-alls and one small reduce-scatter forward. The first block mixes before its rows leave the
    rank, and from then on token mixing is the exchange. mode "plain": 2 L all-to-alls, to the owners of the tokens and
    back around each FFN. Backward mirrors either. All ranks of a group have equally many rows.

    Attributes:
        traffic: what this rank has sent.
    """

    def __init__(self, backbone: RankMixer, grid: ExpertGrid, mode: Spread, pieces: int) -> None:
        super().__init__()
        self._pieces = pieces
        self.out_dim, self.mode = backbone.out_dim, mode
        self._num_tokens = backbone.num_tokens
        self.blocks, self.final_norm = backbone.blocks, backbone.final_norm
        if grid.size > 1:
            for block in _blocks(self):
                keep_own_share(block.ffn, grid)
            self.experts_below = ExpertsBelow(grid)
        transport = grid.transport()
        self._alone, self._exchange = TokenExchange(LocalTransport()), TokenExchange(transport)
        self.traffic: Traffic = transport.traffic

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Tensor:
        """Tokens [B, T, D] of own rows, and what is known of these -> pooled [B, D] of own rows."""
        x_TBD = x_BTD.transpose(0, 1)
        if self.mode == "plain":
            return self._plain(x_TBD, None if rows is None else self._exchange.rows_of_group(rows, 1)[0])
        pieces = x_TBD.chunk(self._pieces, dim=1)
        known = [None] * len(pieces) if rows is None else self._exchange.rows_of_group(rows, self._pieces)
        return self._token_parallel(pieces, known)

    def _token_parallel(self, pieces: Sequence[Tensor], rows: Sequence[RoutedRows | None]) -> Tensor:
        """While a piece of the rows is under way, the FFNs of another compute."""
        blocks, exchange = _blocks(self), self._exchange
        starts = [exchange.start_scatter(_mixed(blocks[0], x_TBD, self._alone)) for x_TBD in pieces]
        arrivals: list[Callable[[], Tensor]] = [partial(exchange.finish_scatter, start) for start in starts]
        outputs: list[Tensor] = []
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            reports: list[RoutingReport] = []
            for n, arrival in enumerate(arrivals):
                x_tND = _fed(block, arrival(), routed(block.ffn, rows[n]))
                if isinstance(block.ffn, PerTokenMoE) and block.ffn.report is not None:
                    reports.append(block.ffn.report)
                if after is None:
                    outputs.append(self.final_norm(x_tND))
                else:
                    arrivals[n] = _departed(after, x_tND, exchange)
            if isinstance(block.ffn, PerTokenMoE):
                block.ffn.report = functools.reduce(operator.add, reports)
        partials = [x_tND.sum(dim=0, dtype=_pooled_dtype(x_tND)) / self._num_tokens for x_tND in outputs]
        return exchange.sum_tokens(partials)

    def _plain(self, x_TBD: Tensor, rows: RoutedRows | None) -> Tensor:
        for block in _blocks(self):
            ffn = partial(self._at_owners, routed(block.ffn, rows))
            x_TBD = _fed(block, _mixed(block, x_TBD, self._alone), ffn)
        x_TBD = self.final_norm(x_TBD)
        return x_TBD.mean(dim=0, dtype=_pooled_dtype(x_TBD))

    def _at_owners(self, ffn: Callable[[Tensor], Tensor], x_TBD: Tensor) -> Tensor:
        return self._exchange.gather(ffn(self._exchange.scatter(x_TBD)))


def spread_part(module: nn.Module) -> SpreadRankMixer | None:
    """The part of a model that is spread over ranks."""
    return next((part for part in module.modules() if isinstance(part, SpreadRankMixer)), None)


def _blocks(backbone: "RankMixer | SpreadRankMixer") -> list[RankMixerBlock]:
    return [cast(RankMixerBlock, block) for block in backbone.blocks]


# `RankMixerBlock.forward` in two halves: between those of the first block the rows change hands.


def _mixed(block: RankMixerBlock, x: Tensor, exchange: TokenExchange) -> Tensor:
    return _departed(block, x, exchange)()


def _departed(block: RankMixerBlock, x: Tensor, exchange: TokenExchange) -> Callable[[], Tensor]:
    """`_mixed` under way: called, it waits for what arrives."""
    start = exchange.start_mix(block.mixing_norm(x) if block.norm == "pre" else x)

    def arrive() -> Tensor:
        y = exchange.finish_mix(start, x if block.skip else None)
        return block.mixing_norm(y) if block.norm == "post" else y

    return arrive


def _fed(block: RankMixerBlock, x: Tensor, ffn: Callable[[Tensor], Tensor]) -> Tensor:
    y = ffn(block.ffn_norm(x) if block.norm == "pre" else x)
    y = x + y if block.skip else y
    return block.ffn_norm(y) if block.norm == "post" else y


def _pooled_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
