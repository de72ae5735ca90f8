"""A batch of prepared rows as torch tensors, the same on every device and under every sharding."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Rows of a batch that follow each other and share a user side, whose ids ride on the first row of each group.

    `group_B`: int64 [B], the group of each row, ascending from 0; `first_G`: int64 [G], the first row of each group.
    Padding rows are a group. `features` are those whose ids ride. Of S of them, `sequences`, a group has the events of
    all its rows: row b may see the oldest `visible_SB[s, b]`, int64, and reads the newest `newest[s]` of these, which
    makes `seen[s]` events over all rows.
    """

    group_B: Tensor
    first_G: Tensor
    features: tuple[str, ...]
    sequences: tuple[str, ...]
    newest: tuple[int, ...]
    visible_SB: Tensor
    seen: tuple[int, ...]

    def tensors(self) -> dict[str, Tensor]:
        """By field."""
        return {"group_B": self.group_B, "first_G": self.first_G, "visible_SB": self.visible_SB}


@dataclass(frozen=True)
class JaggedIds:
    """Ids of several features over the same rows, feature-major: all rows of the first feature, then of the next.

    `values`: int64 [sum of lengths]; `lengths_FB`: int32 [F, B], ids of feature f in row b; `counts`: ids of each
    feature over all rows, known to the host, which would have to wait for a GPU to count them there. `groups` is None
    where each row has its own ids of every feature.
    """

    features: tuple[str, ...]
    values: Tensor
    lengths_FB: Tensor
    counts: tuple[int, ...]
    groups: Groups | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By field, those of the groups left out."""
        return {"values": self.values, "lengths_FB": self.lengths_FB}

    @classmethod
    def on_host(cls, features: tuple[str, ...], values: Tensor, lengths_FB: Tensor) -> "JaggedIds":
        """Those of a batch that is being made, in host memory."""
        return cls(features, values, lengths_FB, tuple(lengths_FB.sum(dim=1).tolist()))


@dataclass(frozen=True)
class Position:
    """How far training has read: `row` rows of the shuffled stream of epoch `epoch` (from 0) are done.

    Where a run trains on several splits in turn, an epoch is one of them.

    It counts rows in an order that all world sizes share, so a run can go on with another number of ranks.
    """

    epoch: int
    row: int


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Every share has the same number of rows B; a tail that does not fill it ends in padding rows of weight 0 that have
    no ids, so that every rank takes every step with the same shapes.

    `global_weight` is the summed weight of all ranks' rows, known ahead of time from the manifest. `keys_BS` and
    `known_BS`, int64 and bool, are there where rows are scored by columns: the key that each row has in each of S
    features, and whether it has one.
    """

    row_id_B: Tensor
    user_id_B: Tensor
    timestamp_B: Tensor
    weight_B: Tensor
    labels_BK: Tensor
    numerics_BN: Tensor
    ids: JaggedIds
    global_weight: float
    truth_BK: Tensor | None = None
    keys_BS: Tensor | None = None
    known_BS: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows that are not padding."""
        return int(self.weight_B.count_nonzero())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, where copies from pinned memory queue up behind what runs in the stream."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, JaggedIds):
                moved = {name: move(tensor) for name, tensor in value.tensors().items()}
                return dataclasses.replace(value, **moved, groups=move(value.groups))
            if isinstance(value, Groups):
                return dataclasses.replace(value, **{name: move(tensor) for name, tensor in value.tensors().items()})
            return value

        return Batch(**{field.name: move(getattr(self, field.name)) for field in dataclasses.fields(self)})

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield value
        yield from self.ids.tensors().values()
        if self.ids.groups is not None:
            yield from self.ids.groups.tensors().values()
