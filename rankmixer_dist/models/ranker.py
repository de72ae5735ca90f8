"""The dense model: embeddings and numerics -> tokens -> backbone -> a logit a task."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from rankmixer_dist.embedded import Embedded
from rankmixer_dist.layers.numeric import NumericNormalizer
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport
from rankmixer_dist.layers.stacked_linear import keeping_part
from rankmixer_dist.layers.target_attention import MeanPooling, TargetAttention
from rankmixer_dist.layers.task_heads import TaskHeads
from rankmixer_dist.layers.tokenizer import AutoSplitTokenizer, ChunkTokenizer, GroupTokenizer, Tokenizer
from rankmixer_dist.models.backbone import Backbone
from rankmixer_dist.models.backbones import build_backbone
from rankmixer_dist.models.features import Features, FieldSpec, GroupSpec, NumericSpec, SequenceSpec

TokenizerKind = Literal["group", "chunk", "auto_split"]


class Scored(NamedTuple):
    """What a ranker makes of a batch; a tuple, since DeepSpeed looks for what has a gradient in tuples.

    Attributes:
        logits_BK: [B, K], fp32.
        stages: in training mode [B, K], fp32, of each auxiliary head.
        routing: the reports of the backbone's mixtures of experts.
    """

    logits_BK: Tensor
    stages: tuple[Tensor, ...]
    routing: tuple[RoutingReport, ...]


class Ranker(nn.Module):
    """Pools sequences, normalises numerics, hands each semantic group to the tokenizer and scores its tokens.

    Built by `build_ranker`. Embeddings and numerics arrive in fp32; they are cast to the parameters' dtype after the
    numerics are normalised, and logits leave in fp32.

    Args:
        auxiliary_heads: one for each of the backbone's intermediate stages that has a loss of its own; used only while
            training.

    Attributes:
        features: what it reads, in the order of its columns.
    """

    def __init__(
        self,
        *,
        features: Features,
        poolings: Sequence[nn.Module],
        numerics: NumericNormalizer,
        tokenizer: Tokenizer,
        backbone: Backbone,
        heads: TaskHeads,
        auxiliary_heads: Sequence[TaskHeads] = (),
    ) -> None:
        super().__init__()
        self.features = features
        self._columns = features.columns()
        self.poolings = nn.ModuleList(poolings)
        self.numerics = numerics
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.heads = heads
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)

    def forward(self, embedded: Embedded, numerics_BN: Tensor, rows: RoutedRows | None = None) -> Scored:
        """Scores a batch.

        Args:
            embedded: vectors of all fields and events of all sequences.
            numerics_BN: [B, N] in the order of `build_ranker(numerics=...)`, NaN = missing.
            rows: for a backbone with a mixture of experts.
        """
        x_BTD = self.tokenizer(self._groups(embedded, numerics_BN))
        pooled = self.backbone(x_BTD, rows)
        # A stage without a head is one that has no loss.
        stages = zip(self.auxiliary_heads, pooled.stages, strict=False)
        return Scored(self.heads(pooled.out_BD), tuple(head(out_BD) for head, out_BD in stages), pooled.routing)

    def _groups(self, embedded: Embedded, numerics_BN: Tensor) -> list[list[Tensor]]:
        """Of each semantic group its parts [B, w]."""
        dtype = self.tokenizer.dtype
        vectors = dict(embedded.vectors)
        for spec, pooling in zip(self.features.sequences, self.poolings, strict=True):
            query_BD = None if spec.query is None else embedded.vectors[spec.query].to(dtype)
            events = embedded.events[spec.name]
            vectors[spec.name] = pooling(query_BD, events.values_ND.to(dtype), events.offsets)
        numerics_B2N = self.numerics(numerics_BN)
        return [[vectors[c] if isinstance(c, str) else numerics_B2N[:, c] for c in group] for group in self._columns]


def build_ranker(
    *,
    fields: Sequence[FieldSpec],
    sequences: Sequence[SequenceSpec],
    numerics: Sequence[NumericSpec],
    groups: Sequence[GroupSpec],
    token_dim: int,
    base_rates: Sequence[float],
    tokenizer: TokenizerKind = "group",
    num_tokens: int | None = None,
    tokenizer_hidden: int | None = None,
    global_token: bool = False,
    backbone: str = "rankmixer",
    options: dict[str, Any] | None = None,
    head_hidden: Sequence[int] = (),
    auxiliary: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Ranker:
    """Builds the dense model from plain values, with weights from torch's global generator.

    Args:
        groups: in token order. Every feature belongs to exactly one.
        token_dim: D.
        base_rates: share of positives of each task, in (0, 1); sets K and where the logits start.
        tokenizer: what a token reads; see `layers.tokenizer`.
        num_tokens: of a chunk or auto_split tokenizer, the global token not counted; as many as the groups' by default.
        tokenizer_hidden: hidden width inside the tokenizer; None for linear projections.
        global_token: add a token of all features.
        backbone: its name in `models.backbones`.
        options: its own arguments.
        head_hidden: hidden widths of each task's head; none is one linear layer.
        auxiliary: give the backbone's intermediate stages heads of their own.
        part: which part of the backbone's stacked layers, and of how many, is to be cut out of it: the others have no
            values (`layers.stacked_linear.keeping_part`).

    Raises:
        ValueError: names that are doubled, unknown or in no group; a query that is not a field of the sequence's
            width; sizes that a layer refuses.
    """
    features = Features(tuple(fields), tuple(sequences), tuple(numerics), tuple(groups))
    poolings = [_build_pooling(spec) for spec in sequences]
    tokens = _build_tokenizer(
        tokenizer,
        features,
        num_local=num_tokens or sum(group.tokens for group in groups),
        token_dim=token_dim,
        hidden_dim=tokenizer_hidden,
        global_token=global_token,
    )
    with keeping_part(*part):
        trunk = build_backbone(backbone, num_tokens=tokens.num_tokens, token_dim=token_dim, **(options or {}))

    def heads() -> TaskHeads:
        return TaskHeads(
            in_dim=trunk.out_dim, num_tasks=len(base_rates), hidden_dims=head_hidden, base_rates=base_rates
        )

    return Ranker(
        features=features,
        poolings=poolings,
        numerics=NumericNormalizer(mean=[n.mean for n in numerics], std=[n.std for n in numerics]),
        tokenizer=tokens,
        backbone=trunk,
        heads=heads(),
        auxiliary_heads=[heads() for _ in range(trunk.num_auxiliary if auxiliary else 0)],
    )


def _build_tokenizer(
    kind: TokenizerKind,
    features: Features,
    *,
    num_local: int,
    token_dim: int,
    hidden_dim: int | None,
    global_token: bool,
) -> Tokenizer:
    shared: dict[str, Any] = {"token_dim": token_dim, "hidden_dim": hidden_dim, "global_token": global_token}
    dims, tokens = features.group_dims(), [group.tokens for group in features.groups]
    if kind == "chunk":
        return ChunkTokenizer(in_dim=sum(dims), num_chunks=num_local, **shared)
    if kind == "auto_split":
        return AutoSplitTokenizer(in_dim=sum(dims), num_splits=num_local, **shared)
    return GroupTokenizer(group_dims=dims, group_tokens=tokens, **shared)


def _build_pooling(spec: SequenceSpec) -> nn.Module:
    if spec.pooling == "mean":
        return MeanPooling()
    return TargetAttention(dim=spec.dim, hidden_dims=spec.attention_hidden, softmax=spec.softmax)
