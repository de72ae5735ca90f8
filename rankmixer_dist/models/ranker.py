"""The dense model: embeddings and numerics -> tokens -> backbone -> a logit a task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankmixer_dist.cost import (
    DenseCost,
    Part,
    heads_part,
    mean_pooling_part,
    target_attention_part,
    tokenizer_part,
    total,
)
from rankmixer_dist.layers.numeric import NumericNormalizer
from rankmixer_dist.layers.target_attention import MeanPooling, TargetAttention
from rankmixer_dist.layers.task_heads import TaskHeads
from rankmixer_dist.layers.tokenizer import GroupTokenizer
from rankmixer_dist.models.backbone import Backbone
from rankmixer_dist.models.features import Features, FieldSpec, GroupSpec, NumericSpec, SequenceSpec
from rankmixer_dist.models.rankmixer import Norm, RankMixer


class Ranker(nn.Module):
    """Pools sequences, normalises numerics, concatenates all features in group order, tokenises and scores.

    Built by `build_ranker`. Embeddings and numerics arrive in fp32; they are cast to the parameters' dtype after the
    numerics are normalised, and logits leave in fp32.
    """

    def __init__(
        self,
        *,
        features: Features,
        poolings: Sequence[nn.Module],
        numerics: NumericNormalizer,
        tokenizer: GroupTokenizer,
        backbone: Backbone,
        heads: TaskHeads,
    ) -> None:
        super().__init__()
        self._features = features
        self._columns = features.columns()
        self.poolings = nn.ModuleList(poolings)
        self.numerics = numerics
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.heads = heads

    def forward(
        self,
        fields: dict[str, Tensor],
        sequences: dict[str, Tensor],
        lengths: dict[str, Tensor],
        numerics_BN: Tensor,
    ) -> Tensor:
        """Scores a batch.

        Args:
            fields: name -> [B, dim].
            sequences: name -> [B, L, dim], finite beyond each row's length.
            lengths: name -> [B], valid positions of each row's sequence.
            numerics_BN: [B, N] in the order of `build_ranker(numerics=...)`, NaN = missing.

        Returns:
            Logits [B, K], fp32.
        """
        dtype = self.tokenizer.dtype
        embedded = dict(fields)
        for spec, pooling in zip(self._features.sequences, self.poolings, strict=True):
            query_BD = None if spec.query is None else fields[spec.query].to(dtype)
            embedded[spec.name] = pooling(query_BD, sequences[spec.name].to(dtype), lengths[spec.name])
        numerics_B2N = self.numerics(numerics_BN)
        parts = [embedded[c] if isinstance(c, str) else numerics_B2N[:, c] for c in self._columns]
        x_BW = torch.cat(parts, dim=1).to(dtype)
        return self.heads(self.backbone(self.tokenizer(x_BW)))

    def cost(self) -> DenseCost:
        """Parameters and FLOPs per row, by the conventions of `rankmixer_dist.cost`."""
        return total(
            [
                *(_pooling_part(spec) for spec in self._features.sequences),
                tokenizer_part(
                    group_dims=self.tokenizer.group_dims,
                    group_tokens=self.tokenizer.group_tokens,
                    token_dim=self.tokenizer.token_dim,
                ),
                self.backbone.cost(),
                heads_part(
                    in_dim=self.backbone.out_dim, num_tasks=self.heads.num_tasks, hidden_dims=self.heads.hidden_dims
                ),
            ]
        )


def _pooling_part(spec: SequenceSpec) -> Part:
    name = f"pooling.{spec.name}"
    if spec.pooling == "mean":
        return mean_pooling_part(name, dim=spec.dim, length=spec.max_length)
    return target_attention_part(name, dim=spec.dim, length=spec.max_length, hidden_dims=spec.attention_hidden)


def build_ranker(
    *,
    fields: Sequence[FieldSpec],
    sequences: Sequence[SequenceSpec],
    numerics: Sequence[NumericSpec],
    groups: Sequence[GroupSpec],
    token_dim: int,
    num_blocks: int,
    hidden_dim: int,
    norm: Norm = "post",
    base_rates: Sequence[float],
    head_hidden: Sequence[int] = (),
) -> Ranker:
    """Builds the dense model from plain values, with weights from torch's global generator.

    Args:
        groups: in token order; T is the sum of their tokens. Every feature belongs to exactly one.
        token_dim: D, a multiple of T.
        num_blocks: L.
        hidden_dim: F, the hidden width of the per-token FFN.
        norm: "post" (the paper) or "pre".
        base_rates: share of positives of each task, in (0, 1); sets K and where the logits start.
        head_hidden: hidden widths of each task's head; none is one linear layer.

    Raises:
        ValueError: names that are doubled, unknown or in no group; a query that is not a field of the sequence's
            width; sizes that a layer refuses.
    """
    features = Features(tuple(fields), tuple(sequences), tuple(numerics), tuple(groups))
    num_tokens = sum(group.tokens for group in groups)
    poolings = [_build_pooling(spec) for spec in sequences]
    tokenizer = GroupTokenizer(
        group_dims=features.group_dims(), group_tokens=[group.tokens for group in groups], token_dim=token_dim
    )
    backbone = RankMixer(
        num_tokens=num_tokens, token_dim=token_dim, num_blocks=num_blocks, hidden_dim=hidden_dim, norm=norm
    )
    return Ranker(
        features=features,
        poolings=poolings,
        numerics=NumericNormalizer(mean=[n.mean for n in numerics], std=[n.std for n in numerics]),
        tokenizer=tokenizer,
        backbone=backbone,
        heads=TaskHeads(
            in_dim=backbone.out_dim, num_tasks=len(base_rates), hidden_dims=head_hidden, base_rates=base_rates
        ),
    )


def _build_pooling(spec: SequenceSpec) -> nn.Module:
    if spec.pooling == "mean":
        return MeanPooling()
    return TargetAttention(dim=spec.dim, hidden_dims=spec.attention_hidden, softmax=spec.softmax)
