"""Tokenizers: the semantic groups of a row become T tokens of width D.

What a token reads is the choice: a semantic group (`GroupTokenizer`), an equal chunk of the row
(`ChunkTokenizer`), or everything (`AutoSplitTokenizer`, and the global token that each of them may add).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankmixer_dist.layers.stacked_linear import StackedLinear

Groups = Sequence[Sequence[Tensor]]
"""Of each semantic group its parts [B, w], which are its columns side by side, in any floating dtype."""


class Tokenizer(nn.Module, ABC):
    """What every tokenizer is: groups of features in, W wide together, and tokens [B, T, D] out.

    With `global_token`, X_G = MLP_g(all features) stands before the others (arXiv 2602.06563), W -> hidden -> D with
    GELU; `hidden_dim` is its hidden width too, or D where the other tokens have no hidden layer. Neither its place nor
    the MLP's inside is published; to blocks whose weights belong to positions, the place is all the same.

    Args:
        in_dim: W.
        num_local: the number of tokens beside the global one.
        token_dim: D.
        hidden_dim: hidden width of each token's MLP; None for linear projections.
        global_token: whether there is a global token.

    Attributes:
        in_dim: W.
        num_tokens: T, the global token included.
        token_dim: D.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, *, in_dim: int, num_local: int, token_dim: int, hidden_dim: int | None, global_token: bool
    ) -> None:
        super().__init__()
        if min(in_dim, num_local, token_dim) < 1:
            raise ValueError(f"{in_dim} features, {num_local} tokens and token_dim {token_dim} must be at least 1 each")
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim {hidden_dim} must be at least 1; leave it out for linear projections")
        self.in_dim, self.token_dim, self.hidden_dim, self.global_token = in_dim, token_dim, hidden_dim, global_token
        self.num_tokens = num_local + global_token
        hidden = hidden_dim or token_dim
        self.global_mlp = (
            nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, token_dim)) if global_token else None
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and what inputs must be cast to."""
        return next(self.parameters()).dtype

    def forward(self, groups: Groups) -> Tensor:
        """Parts [B, w] of each group -> [B, T, D]."""
        runs = self._local_tokens(groups)
        if self.global_mlp is not None:
            runs = [self.global_mlp(self._side_by_side(chain(*groups))).unsqueeze(0), *runs]
        return (torch.cat(runs) if len(runs) > 1 else runs[0]).transpose(0, 1)

    def _side_by_side(self, parts: Iterable[Tensor]) -> Tensor:
        """The only copy of a value on its way to its GEMM."""
        parts = [*parts]
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).to(self.dtype)

    @abstractmethod
    def _local_tokens(self, groups: Groups) -> list[Tensor]:
        """Parts [B, w] of each group -> runs of tokens [n, B, D] in token order."""


class GroupTokenizer(Tokenizer):
    """Eq. 2 with semantic groups for chunks: x_t = W_t e_g + b_t for every token t of group g.

    Each token projects its whole group, so that no feature is cut in two. Groups of equal width share one
    `StackedLinear`, hence one batched GEMM a distinct width, which reads the groups where they lie side by side.
    Padding all groups to the widest would need one GEMM only, but would carry dead weights that are stored, reduced
    over ranks and updated by weight decay; buckets hold exactly sum_t (w_t + 1) D parameters and do no wasted work.
    Tokens lie token-major in memory.

    With `hidden_dim`, TokenMixer-Large's MLP_g(concat(G_g)): one hidden layer a group (GELU), which all tokens of the
    group read, then a projection a token. Hidden layers are as wide in all groups, so the projections are one GEMM.

    Args:
        group_dims: w_g, the width of each group.
        group_tokens: the number of tokens of each group.
        token_dim: D.
        hidden_dim: hidden width of each group's MLP; None for linear projections.
        global_token: whether X_G is added as one more token.

    Raises:
        ValueError: lists of different or no length, or a size below 1.
    """

    _hidden_rows: Tensor

    def __init__(
        self,
        *,
        group_dims: Sequence[int],
        group_tokens: Sequence[int],
        token_dim: int,
        hidden_dim: int | None = None,
        global_token: bool = False,
    ) -> None:
        if len(group_dims) != len(group_tokens) or not group_dims:
            raise ValueError(
                f"give one width and one token count per group, not {len(group_dims)} and {len(group_tokens)}"
            )
        if min(*group_dims, *group_tokens, token_dim) < 1:
            raise ValueError("every group needs a width and a token count of at least 1, and so does token_dim")
        super().__init__(
            in_dim=sum(group_dims),
            num_local=sum(group_tokens),
            token_dim=token_dim,
            hidden_dim=hidden_dim,
            global_token=global_token,
        )
        self.group_dims, self.group_tokens = tuple(group_dims), tuple(group_tokens)
        self.widths = tuple(sorted(set(group_dims)))
        # Per width: the group that each of the bucket's maps reads, one map a token or, to a hidden layer, a group.
        self._sources = [
            [
                g
                for g, dim in enumerate(group_dims)
                if dim == width
                for _ in range(group_tokens[g] if hidden_dim is None else 1)
            ]
            for width in self.widths
        ]
        self.projections = nn.ModuleList(
            StackedLinear(count=len(sources), in_dim=width, out_dim=hidden_dim or token_dim)
            for width, sources in zip(self.widths, self._sources, strict=True)
        )
        # Runs of tokens that one bucket makes, in token order: the bucket, and how many tokens.
        self._runs: list[tuple[int, int]] = []
        for dim, tokens in zip(group_dims, group_tokens, strict=True):
            bucket = self.widths.index(dim)
            if self._runs and self._runs[-1][0] == bucket:
                self._runs[-1] = bucket, self._runs[-1][1] + tokens
            else:
                self._runs.append((bucket, tokens))
        if hidden_dim is not None:
            num_local = sum(group_tokens)
            self.outputs = StackedLinear(count=num_local, in_dim=hidden_dim, out_dim=token_dim)
            # Per token: where its group's hidden layer lies when all buckets are put together.
            order = [g for sources in self._sources for g in sources]
            rows = [order.index(g) for g, tokens in enumerate(group_tokens) for _ in range(tokens)]
            self.register_buffer("_hidden_rows", torch.tensor(rows), persistent=False)

    def _local_tokens(self, groups: Groups) -> list[Tensor]:
        buckets = [
            project(self._bucket(groups, sources))
            for project, sources in zip(self.projections, self._sources, strict=True)
        ]
        if self.hidden_dim is not None:
            hidden_GBF = F.gelu(torch.cat(buckets) if len(buckets) > 1 else buckets[0])
            return [self.outputs(hidden_GBF.index_select(0, self._hidden_rows))]
        if len(buckets) == 1:
            return buckets
        # One split a bucket: its backward pass is one copy, where a slice a run would make as many passes over all.
        parts = [
            iter(made.split([tokens for bucket, tokens in self._runs if bucket == number]))
            for number, made in enumerate(buckets)
        ]
        return [next(parts[bucket]) for bucket, _ in self._runs]

    def _bucket(self, groups: Groups, sources: Sequence[int]) -> Tensor:
        """[n, B, w]: what each of a bucket's maps reads."""
        maps = len(sources)
        if len({*sources}) == 1:
            return self._side_by_side(groups[sources[0]]).expand(maps, -1, -1)
        if all(len(groups[g]) == 1 for g in sources):
            return torch.stack([groups[g][0] for g in sources]).to(self.dtype)
        row_BX = self._side_by_side(chain.from_iterable(groups[g] for g in sources))
        return row_BX.unflatten(1, (maps, -1)).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"group_dims={self.group_dims}, group_tokens={self.group_tokens}, token_dim={self.token_dim}"


class ChunkTokenizer(Tokenizer):
    """Eq. 2 as it stands: x_i = Proj_i(e_input[d (i - 1) : d i]), whatever features the cuts go through.

    The paper does not say whether the chunks share their projection; here each has its own, as its later readers have
    it. Where N chunks do not divide the row, d is rounded up and the last chunk filled up with zeros, and starts as the
    projection of what it really holds.

    Args:
        in_dim: W, the width of the row.
        num_chunks: N, few enough that the last chunk holds a feature.
        token_dim: D.
        hidden_dim: hidden width of each chunk's MLP (GELU); None for linear projections.
        global_token: whether X_G is added as one more token.

    Raises:
        ValueError: chunks that would hold nothing, or a size below 1.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        num_chunks: int,
        token_dim: int,
        hidden_dim: int | None = None,
        global_token: bool = False,
    ) -> None:
        super().__init__(
            in_dim=in_dim, num_local=num_chunks, token_dim=token_dim, hidden_dim=hidden_dim, global_token=global_token
        )
        self.num_chunks = num_chunks
        self.chunk_dim = -(-in_dim // num_chunks)
        last_dim = in_dim - (num_chunks - 1) * self.chunk_dim
        if last_dim < 1:
            filled = -(-in_dim // self.chunk_dim)
            raise ValueError(
                f"{in_dim} features fill only {filled} of {num_chunks} chunks of width {self.chunk_dim}; "
                f"use {filled} chunks"
            )
        self.projections = StackedLinear(
            count=num_chunks,
            in_dim=self.chunk_dim,
            out_dim=hidden_dim or token_dim,
            fan_in=[*[self.chunk_dim] * (num_chunks - 1), last_dim],
        )
        if hidden_dim is not None:
            self.outputs = StackedLinear(count=num_chunks, in_dim=hidden_dim, out_dim=token_dim)

    def _local_tokens(self, groups: Groups) -> list[Tensor]:
        x_BW = self._side_by_side(chain(*groups))
        filled_BX = F.pad(x_BW, (0, self.num_chunks * self.chunk_dim - self.in_dim))
        x_NBd = filled_BX.unflatten(1, (self.num_chunks, self.chunk_dim)).transpose(0, 1)
        y_NBF = self.projections(x_NBd)
        return [y_NBF if self.hidden_dim is None else self.outputs(F.gelu(y_NBF))]

    def extra_repr(self) -> str:
        return f"in_dim={self.in_dim}, num_chunks={self.num_chunks}, token_dim={self.token_dim}"


class AutoSplitTokenizer(Tokenizer):
    """[x_1; ...; x_N] = split(MLP(all features)), the auto-split of OneTrans (arXiv 2510.26104): no groups to choose.

    The MLP's depth is not published. Without `hidden_dim` it is one linear map, so that every token has its own
    projection of everything (as in UniRank's Auto); with it, the tokens share one hidden layer (GELU). Tokens lie
    row-major in memory, since one GEMM makes them all.

    Args:
        in_dim: W.
        num_splits: N, the number of tokens that the output is split into.
        token_dim: D.
        hidden_dim: width of the hidden layer; None for none.
        global_token: whether X_G is added as one more token.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        num_splits: int,
        token_dim: int,
        hidden_dim: int | None = None,
        global_token: bool = False,
    ) -> None:
        super().__init__(
            in_dim=in_dim, num_local=num_splits, token_dim=token_dim, hidden_dim=hidden_dim, global_token=global_token
        )
        self.num_splits = num_splits
        self.hidden = None if hidden_dim is None else nn.Linear(in_dim, hidden_dim)
        self.outputs = nn.Linear(hidden_dim or in_dim, num_splits * token_dim)

    def _local_tokens(self, groups: Groups) -> list[Tensor]:
        x_BW = self._side_by_side(chain(*groups))
        read_BF = x_BW if self.hidden is None else F.gelu(self.hidden(x_BW))
        return [self.outputs(read_BF).unflatten(1, (self.num_splits, self.token_dim)).transpose(0, 1)]

    def extra_repr(self) -> str:
        return f"in_dim={self.in_dim}, num_splits={self.num_splits}, token_dim={self.token_dim}"
