"""What a lookup gives the dense model: a vector a row of each feature, and the events of each sequence, jagged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Events:
    """Embedded events of one sequence: those of the first row, oldest first, then those of the next, without padding.

    `values_ND`: [N, dim]; `offsets`: integers [B + 1], row b has the events offsets[b] to offsets[b + 1].
    """

    values_ND: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Embedded:
    """An embedded batch, by feature name: `vectors` [B, dim] each, and `events` of each sequence."""

    vectors: Mapping[str, Tensor]
    events: Mapping[str, Events]

    def tensors(self) -> Iterator[Tensor]:
        """All embeddings, into which gradients flow."""
        yield from self.vectors.values()
        for events in self.events.values():
            yield events.values_ND
