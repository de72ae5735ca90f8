"""The peer of a training step: a plain loop of TorchRec's own parts, as its guides have it."""

from collections.abc import Iterator
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.crossnet import CrossNet
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.streamable import Pipelineable

from rankmixer_dist.batch import Batch
from rankmixer_dist.config import RunConfig
from rankmixer_dist.schema import NumericFeature, Schema


class PeerBatch(Pipelineable):
    """The values of a `Batch` that the peer reads."""

    def __init__(self, numerics_BN: Tensor, ids: KeyedJaggedTensor, labels_B: Tensor) -> None:
        self.numerics_BN, self.ids, self.labels_B = numerics_BN, ids, labels_B

    @classmethod
    def of(cls, batch: Batch) -> "PeerBatch":
        ids = batch.ids
        keyed = KeyedJaggedTensor(
            keys=list(ids.features), values=ids.values, lengths=ids.lengths_FB.reshape(-1),
            stride=ids.lengths_FB.shape[1], length_per_key=list(ids.counts),
        )  # fmt: skip
        return cls(batch.numerics_BN, keyed, batch.labels_BK[:, 0])

    def to(self, device: torch.device, non_blocking: bool = False) -> "PeerBatch":
        parts: list[Any] = [
            part.to(device=device, non_blocking=non_blocking) for part in (self.numerics_BN, self.ids, self.labels_B)
        ]
        return PeerBatch(*parts)

    def record_stream(self, stream: Any) -> None:
        for part in (self.numerics_BN, self.ids, self.labels_B):
            part.record_stream(stream)


class PeerModel(nn.Module):
    """Numerics and pooled embeddings side by side; an MLP, with DCN-V2's cross network beside it; one logit."""

    def __init__(self, schema: Schema, *, numerics: int, hidden_dims: list[int], cross_layers: int) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=name, num_embeddings=table.rows, embedding_dim=table.dim,
                feature_names=list(schema.features_of(name)),
            )
            for name, table in schema.tables.items()
        ]  # fmt: skip
        self.bags = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        width = numerics + sum(table.embedding_dim * len(table.feature_names) for table in tables)
        widths = [width, *hidden_dims]
        layers = [layer for i, o in zip(widths, hidden_dims, strict=False) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.mlp = nn.Sequential(*layers)
        self.cross = CrossNet(width, cross_layers) if cross_layers else None
        self.head = nn.Linear(hidden_dims[-1] + (width if cross_layers else 0), 1)

    def forward(self, batch: PeerBatch) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, and its logits."""
        x_BW = torch.cat([batch.numerics_BN, self.bags(batch.ids).values()], dim=1)
        pooled = self.mlp(x_BW)
        if self.cross is not None:
            pooled = torch.cat([self.cross(x_BW), pooled], dim=1)
        logits_B = self.head(pooled).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B), logits_B.detach()


class PeerLoop:
    """DistributedModelParallel with the planner's plan, DDP for the dense part, Adam and fused row-wise Adagrad."""

    def __init__(self, config: RunConfig) -> None:
        model, schema = config.model, config.features
        section = getattr(model, model.backbone)
        fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": config.sparse.lr}
        fused["eps"] = config.sparse.eps
        peer = PeerModel(
            schema, numerics=len(schema.of_kind(NumericFeature)), hidden_dims=list(section.hidden_dims),
            cross_layers=getattr(section, "num_layers", 0),
        )  # fmt: skip
        sharded = DistributedModelParallel(
            peer, device=torch.device("cpu"), sharders=[EmbeddingBagCollectionSharder(fused_params=fused)]
        )
        dense = KeyedOptimizerWrapper(
            {name: p for name, p in sharded.named_parameters() if "bags" not in name},
            lambda parameters: torch.optim.Adam(parameters, lr=config.dense.lr),
        )
        self._pipeline = TrainPipelineSparseDist(
            sharded, CombinedOptimizer([sharded.fused_optimizer, dense]), torch.device("cpu")
        )

    def train(self, batches: Iterator[PeerBatch]) -> int:
        """Steps taken until the batches end."""
        steps = 0
        while True:
            try:
                self._pipeline.progress(batches)
            except StopIteration:
                return steps
            steps += 1
