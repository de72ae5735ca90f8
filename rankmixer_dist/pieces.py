"""A rank's part of a tensor that may lie over several ranks: what checkpoints are made of."""

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


def dense_pieces(weights: Mapping[str, Tensor], kind: str = "weight") -> list[Piece]:
    """Whole dense tensors by parameter name, flattened: ZeRO cuts a parameter anywhere, and a run of it is a box."""
    pieces = []
    for name, weight in weights.items():
        flat = weight.detach().view(-1)
        pieces.append(whole(dense_key(name, kind), flat))
    return pieces


def module_pieces(module: nn.Module) -> list[Piece]:
    """A dense module's weights, to be read without an engine."""
    return dense_pieces(dict(module.named_parameters()))


def by_key(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each tensor."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.key, []).append(piece)
    return found
