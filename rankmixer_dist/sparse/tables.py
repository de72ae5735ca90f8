"""Embedding tables as one torch module: ids in, a vector a row of each feature and the events of sequences out."""

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    PoolingType,
)

from rankmixer_dist.batch import JaggedIds
from rankmixer_dist.embedded import Embedded, Events
from rankmixer_dist.schema import IdFeature, MultiIdFeature, Schema, SequenceFeature
from rankmixer_dist.sparse.by_row import by_row
from rankmixer_dist.sparse.pending import Pending


class EmbeddingTables(nn.Module):
    """All tables of a schema. Tables used by a sequence are looked up id by id, the others pooled in the lookup.

    TorchRec keeps pooled and unpooled lookups in two modules that cannot share weights; so an id or a bag on a
    sequence's table goes the unpooled way too, which is how a candidate and its user's history share a table.
    An unpooled module holds tables of one width only, so there is one a width.
    """

    bags: EmbeddingBagCollection | None
    sequences: nn.ModuleList

    def __init__(self, schema: Schema, *, device: torch.device) -> None:
        super().__init__()
        self.schema = schema
        unpooled = schema.unpooled_tables()
        bags: list[EmbeddingBagConfig] = []
        rows: dict[int, list[EmbeddingConfig]] = {}
        for name, table in schema.tables.items():
            users = list(schema.features_of(name))
            shape = {"name": name, "num_embeddings": table.rows, "embedding_dim": table.dim}
            if name in unpooled:
                rows.setdefault(table.dim, []).append(EmbeddingConfig(**shape, feature_names=users))
                continue
            # The pooling belongs to a TorchRec table; features that pool differently share it through sum and a
            # division by the bag's length, which `forward` does.
            bags.append(EmbeddingBagConfig(**shape, feature_names=users, pooling=PoolingType.SUM))
        self.bags = EmbeddingBagCollection(tables=bags, device=device) if bags else None
        self.sequences = nn.ModuleList(EmbeddingCollection(tables=rows[dim], device=device) for dim in sorted(rows))
        self._split = [len(schema.bag_features())]
        self._split += [sum(len(table.feature_names) for table in rows[dim]) for dim in sorted(rows)]

    def forward(self, ids: JaggedIds) -> Embedded:
        """Looks up a batch: `start` and `finish` in one.

        Args:
            ids: all id features of the schema in the order of `Schema.id_features`. What groups of rows share is looked
                up once a group.
        """
        return self.finish(self.start(ids))

    def start(self, ids: JaggedIds, stream: torch.cuda.Stream | None = None) -> Pending:
        """Begins a lookup: ids set out to their owners, and no table is read.

        Args:
            ids: as in `forward`.
            stream: as of `Pending`.
        """
        keyed = KeyedJaggedTensor(
            keys=list(ids.features),
            values=ids.values,
            lengths=ids.lengths_FB.reshape(-1),
            stride=ids.lengths_FB.shape[1],
            length_per_key=list(ids.counts),  # else `split` and TorchRec's exchange ask the device for them
        )
        bags, *unpooled = keyed.split(self._split)
        parts = [*zip(self.sequences, unpooled, strict=True)]
        if self.bags is not None:
            parts.append((self.bags, bags))
        return Pending(ids, parts, stream)

    def finish(self, pending: Pending) -> Embedded:
        """The embeddings of a lookup that has begun, by the tables as they are now."""
        # All lookups start before any is read, so that their exchanges between ranks overlap.
        looked_up = pending.look_up()
        pooled = looked_up.pop().to_dict() if self.bags is not None else {}
        rows = {name: row for of_width in looked_up for name, row in of_width.items()}
        lengths = dict(zip(pending.ids.features, pending.ids.lengths_FB, strict=True))
        vectors: dict[str, Tensor] = {}
        events: dict[str, Events] = {}
        for name, feature in self.schema.features.items():
            if name in pooled:
                vectors[name] = self._pool(feature, pooled[name], lengths[name])
            elif isinstance(feature, SequenceFeature):
                events[name] = Events(rows[name].values(), rows[name].offsets())
            elif isinstance(feature, IdFeature):
                vectors[name] = _one_a_row(rows[name], len(lengths[name]))
            elif isinstance(feature, MultiIdFeature):
                vectors[name] = self._pool(feature, _segment_sum(rows[name]), lengths[name])
        found = Embedded(vectors, events)
        groups = pending.ids.groups
        return found if groups is None else by_row(found, groups)

    @staticmethod
    def _pool(feature: object, summed_BD: Tensor, lengths_B: Tensor) -> Tensor:
        if isinstance(feature, MultiIdFeature) and feature.pooling == "mean":
            return summed_BD / lengths_B.clamp(min=1).to(summed_BD.dtype).unsqueeze(1)
        return summed_BD


def _one_a_row(looked_up: JaggedTensor, rows: int) -> Tensor:
    """[B, dim] of a feature with at most one id a row; zeros for none, which padding rows have."""
    values_ND = looked_up.values()
    return values_ND if len(values_ND) == rows else looked_up.to_padded_dense(1).squeeze(1)


def _segment_sum(rows: JaggedTensor) -> Tensor:
    # Safe: a lookup gives a vector an id, and asking whether the lengths add up to them would wait for the device.
    return torch.segment_reduce(rows.values(), "sum", lengths=rows.lengths(), axis=0, unsafe=True, initial=0.0)
