"""DHEN (arXiv 2203.11014): a hierarchy of ensembles of interaction modules."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.interactions import AttentionInteraction, CrossInteraction, DotInteraction
from rankmixer_dist.layers.mlp import MLP
from rankmixer_dist.layers.precision import widen
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.sizes import check_sizes
from rankmixer_dist.layers.token_linear import TokenLinear
from rankmixer_dist.models.backbone import Backbone, Pooled

Interaction = Literal["dot", "cross", "attention", "linear"]
"""dot: DLRM's products. cross: DCN. attention: a transformer encoder layer. linear: a linear map over tokens."""

Ensemble = Literal["concat", "sum"]
"""How a layer joins its modules' tokens."""

INTERACTIONS: tuple[Interaction, ...] = ("dot", "cross", "attention", "linear")


class DHENLayer(nn.Module):
    """X_{n+1} = LN(Ensemble_i Interaction_i(X_n) + ShortCut(X_n)), one LayerNorm over D for all tokens.

    ShortCut is the identity where the number of tokens stays, else a linear map over tokens.

    Args:
        modules: the interaction modules, all [T, B, D] -> [M, B, D].
        in_tokens: T.
        out_tokens: of the ensemble: M, or M times the number of modules where they are concatenated.
        token_dim: D.
        ensemble: "concat" or "sum".
    """

    def __init__(
        self, modules: Sequence[nn.Module], *, in_tokens: int, out_tokens: int, token_dim: int, ensemble: Ensemble
    ) -> None:
        super().__init__()
        self.interactions = nn.ModuleList(modules)
        self.ensemble = ensemble
        same = out_tokens == in_tokens
        self.shortcut = nn.Identity() if same else TokenLinear(in_tokens=in_tokens, out_tokens=out_tokens)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [out_tokens, B, D]."""
        found = [interact(x_TBD) for interact in self.interactions]
        joined = torch.cat(found) if self.ensemble == "concat" else torch.stack(found).sum(dim=0)
        return self.norm(joined + self.shortcut(x_TBD))


class DHEN(Backbone):
    """DHEN layers, then an MLP on the flattened tokens, which gives the pooled vector.

    The paper leaves open which modules a layer has and how they are joined, and RankMixer does not say what its
    baseline had. Default: one of each kind that the paper lists but the convolution, which sees an order in the tokens
    where there is none, concatenated. Its cross is low-rank here, since the full one holds (T D)^2 weights.

    Args:
        num_tokens: T.
        token_dim: D.
        num_layers: N.
        interactions: kinds of modules in every layer, each at most once.
        ensemble: "concat" or "sum".
        tokens_per_module: M; by default what keeps the number of tokens, rounded up.
        num_heads: of the attention, a divisor of D.
        ffn_dim: hidden width of the encoder layer's FFN; 2 D by default.
        rank: of the cross, at most the width of the flattened tokens, T D and in later layers their tokens times D.
        dot_hidden_dims: hidden widths of the dot products' MLP; ReLU.
        hidden_dims: widths of the last MLP; empty for the flattened tokens themselves.

    Raises:
        ValueError: no module, one twice or unknown; an unknown ensemble; heads that do not divide D; a rank out of
            range; or a size below 1.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 2,
        interactions: Sequence[Interaction] = INTERACTIONS,
        ensemble: Ensemble = "concat",
        tokens_per_module: int | None = None,
        num_heads: int = 1,
        ffn_dim: int | None = None,
        rank: int = 64,
        dot_hidden_dims: Sequence[int] = (512,),
        hidden_dims: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, token_dim=token_dim, num_layers=num_layers)
        unknown = [kind for kind in interactions if kind not in INTERACTIONS]
        if unknown or not interactions or len(set(interactions)) < len(interactions):
            raise ValueError(f"interactions {list(interactions)} must be some of {list(INTERACTIONS)}, each once")
        if ensemble not in ("concat", "sum"):
            raise ValueError(f"ensemble {ensemble!r} is unknown; use 'concat' or 'sum'")
        self.token_dim = token_dim
        self.interactions: tuple[Interaction, ...] = tuple(interactions)
        self.ensemble, self.num_heads, self.rank = ensemble, num_heads, rank
        self.ffn_dim = 2 * token_dim if ffn_dim is None else ffn_dim
        self.dot_hidden_dims = tuple(dot_hidden_dims)
        parts = len(self.interactions) if ensemble == "concat" else 1
        self.tokens_per_module = -(-num_tokens // parts) if tokens_per_module is None else tokens_per_module
        check_sizes(tokens_per_module=self.tokens_per_module, ffn_dim=self.ffn_dim)
        out_tokens = parts * self.tokens_per_module
        counts = (num_tokens, *(out_tokens for _ in range(num_layers - 1)))
        self.layers = nn.ModuleList(
            DHENLayer(
                [self._interaction(kind, in_tokens) for kind in self.interactions],
                in_tokens=in_tokens,
                out_tokens=out_tokens,
                token_dim=token_dim,
                ensemble=ensemble,
            )
            for in_tokens in counts
        )
        self.top = MLP(in_dim=out_tokens * token_dim, hidden_dims=hidden_dims)
        self.out_dim = self.top.out_dim

    def _interaction(self, kind: Interaction, in_tokens: int) -> nn.Module:
        tokens = {"in_tokens": in_tokens, "out_tokens": self.tokens_per_module}
        if kind == "dot":
            return DotInteraction(**tokens, token_dim=self.token_dim, hidden_dims=self.dot_hidden_dims)
        if kind == "cross":
            return CrossInteraction(**tokens, token_dim=self.token_dim, rank=self.rank)
        if kind == "attention":
            return AttentionInteraction(
                **tokens, token_dim=self.token_dim, num_heads=self.num_heads, hidden_dim=self.ffn_dim
            )
        return TokenLinear(**tokens)

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, out_dim]; free of copies at the door when x_BTD lies token-major in memory."""
        x_TBD = x_BTD.transpose(0, 1)
        for layer in self.layers:
            x_TBD = layer(x_TBD)
        return Pooled(widen(self.top(x_TBD.transpose(0, 1).flatten(1))))
