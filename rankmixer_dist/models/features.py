"""What a ranker reads: its features, and the groups that order them into columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FieldSpec:
    """A feature that arrives as one embedding a row."""

    name: str
    dim: int


@dataclass(frozen=True)
class SequenceSpec:
    """A behaviour sequence of at most `max_length` events; `query` names the field that attends to it."""

    name: str
    dim: int
    max_length: int
    query: str | None = None
    pooling: Literal["target_attention", "mean"] = "target_attention"
    attention_hidden: Sequence[int] = (32, 16)
    softmax: bool = False


@dataclass(frozen=True)
class NumericSpec:
    """A number a row, with its statistics in the training split."""

    name: str
    mean: float
    std: float


@dataclass(frozen=True)
class GroupSpec:
    """A semantic group: how many tokens it becomes, and the features that it is made of."""

    name: str
    tokens: int
    members: Sequence[str]


@dataclass(frozen=True)
class Features:
    """All features of a ranker and their groups, in token order.

    Raises:
        ValueError: a name that is doubled, unknown or in no group; a group without members; a query that is not a
            field of the sequence's width.
    """

    fields: Sequence[FieldSpec]
    sequences: Sequence[SequenceSpec]
    numerics: Sequence[NumericSpec]
    groups: Sequence[GroupSpec]

    def __post_init__(self) -> None:
        names = [spec.name for spec in (*self._embedded, *self.numerics)]
        members = [member for group in self.groups for member in group.members]
        for listed, where in ((names, "declared"), (members, "a member of a group")):
            twice = [name for i, name in enumerate(listed) if name in listed[:i]]
            if twice:
                raise ValueError(f"feature {twice[0]!r} is {where} twice; keep one")
        for name in members:
            if name not in names:
                raise ValueError(f"a group names {name!r}, which is no feature; known: {', '.join(names)}")
        for name in names:
            if name not in members:
                raise ValueError(f"feature {name!r} is in no group; add it to one or remove it")
        for group in self.groups:
            if not group.members:
                raise ValueError(f"group {group.name!r} has no members; remove it or give it features")
        for sequence in self.sequences:
            self._check_query(sequence)

    def _check_query(self, sequence: SequenceSpec) -> None:
        if sequence.pooling not in ("target_attention", "mean"):
            raise ValueError(
                f"sequence {sequence.name!r}: pooling {sequence.pooling!r} must be target_attention or mean"
            )
        if (sequence.pooling == "target_attention") != (sequence.query is not None):
            raise ValueError(f"sequence {sequence.name!r}: target_attention needs a `query` field, mean takes none")
        if sequence.query is None:
            return
        dims = {field.name: field.dim for field in self.fields}
        if sequence.query not in dims:
            raise ValueError(f"sequence {sequence.name!r}: query {sequence.query!r} is not a field")
        if dims[sequence.query] != sequence.dim:
            raise ValueError(
                f"sequence {sequence.name!r} has width {sequence.dim} but its query {sequence.query!r} has "
                f"{dims[sequence.query]}; give both the same"
            )

    @property
    def _embedded(self) -> list[FieldSpec | SequenceSpec]:
        return [*self.fields, *self.sequences]

    def group_dims(self) -> list[int]:
        """Width of each group's columns; a numeric takes two."""
        dims = {spec.name: spec.dim for spec in self._embedded}
        return [sum(dims.get(member, 2) for member in group.members) for group in self.groups]

    def columns(self) -> list[list[str | slice]]:
        """Where each group's columns come from: a field's or sequence's name, or columns of the normalised numerics.

        Numerics of a group that follow one another in both orders make one slice.
        """
        index = {spec.name: i for i, spec in enumerate(self.numerics)}
        return [_columns(group.members, index) for group in self.groups]


def _columns(members: Sequence[str], numerics: Mapping[str, int]) -> list[str | slice]:
    columns: list[str | slice] = []
    for member in members:
        if member not in numerics:
            columns.append(member)
            continue
        start = 2 * numerics[member]
        last = columns[-1] if columns else None
        if isinstance(last, slice) and last.stop == start:
            columns[-1] = slice(last.start, start + 2)
        else:
            columns.append(slice(start, start + 2))
    return columns
