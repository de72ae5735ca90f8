"""A rank's part of a tensor that may lie over several ranks: what checkpoints are made of."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, on this rank.

    Ranks may hold different boxes of one tensor, or all of them the same; together they cover it.

    key: name of the tensor, the same on every rank and under every layout.
    shape: of the whole tensor.
    offsets: where the box begins, one a dimension.
    tensor: the box itself, a view of the memory that trains.
    """

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor


def whole(key: str, tensor: Tensor) -> Piece:
    """A tensor that lies on this rank as a whole."""
    return Piece(key, tuple(tensor.shape), (0,) * tensor.dim(), tensor)


def dense_key(parameter: str, kind: str = "weight") -> str:
    """Name of a dense parameter's fp32 weight, or of one of its optimizer moments."""
    return f"dense/{parameter}.{kind}"


@dataclass(frozen=True)
class Place:
    """Where a dense parameter of this rank lies in the model's: a run of entries of the first dimension, or all.

    shape: of the model's parameter.
    first: the first entry that is here.
    """

    shape: tuple[int, ...]
    first: int = 0

    def flat_piece(self, key: str, flat: Tensor, start: int = 0) -> Piece:
        """A run of this rank's parameter, flattened, from its element `start` on, as part of the model's, flattened."""
        offset = self.first * math.prod(self.shape[1:])
        return Piece(key, (math.prod(self.shape),), (offset + start,), flat)


def set_place(parameter: nn.Parameter, place: Place) -> None:
    """Says that `parameter` is a part of a larger one."""
    parameter.place = place  # type: ignore[attr-defined]


def place_of(parameter: Tensor) -> Place:
    """Where `parameter` lies in the model's."""
    return getattr(parameter, "place", Place(tuple(parameter.shape)))


def places_of(module: nn.Module) -> dict[str, Place]:
    """Where each parameter of a dense module lies in the model's."""
    return {name: place_of(parameter) for name, parameter in module.named_parameters()}


def dense_pieces(weights: Mapping[str, Tensor], places: Mapping[str, Place], kind: str = "weight") -> list[Piece]:
    """Dense tensors by parameter name, flattened: ZeRO cuts a parameter anywhere, and a run of it is a box."""
    return [
        places[name].flat_piece(dense_key(name, kind), weight.detach().view(-1)) for name, weight in weights.items()
    ]


def module_pieces(module: nn.Module) -> list[Piece]:
    """A dense module's weights, to be read without an engine."""
    return dense_pieces(dict(module.named_parameters()), places_of(module))


def by_key(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each tensor."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.key, []).append(piece)
    return found
