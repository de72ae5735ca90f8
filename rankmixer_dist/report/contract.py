"""The types of what is read from a run directory's JSON: a file that breaks them is damaged, and says so."""

from typing import Annotated, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things, bytes or FLOPs."""


@dataclass_transform(frozen_default=True)
def from_file(fields: type[T]) -> type[T]:
    """Makes a class of fields one whose values are checked; raises pydantic's `ValidationError`, a `ValueError`."""
    return dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))(fields)  # type: ignore[return-value]
