"""What can be declared of a user's events: aligned columns, of which one position is one event."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from rankmixer_dist.schema.features import Strict


class _EventColumn(Strict):
    column: str | None = Field(default=None, description="raw column of lists; the event column's own name by default")


class EventIds(_EventColumn):
    """An id an event; a missing one stays at its place, as the table's row of missing ids."""

    kind: Literal["id"] = "id"
    table: str


class EventFlags(Strict):
    """What happened at an event: bit i of a number says whether `of[i]` did; what is missing did not."""

    kind: Literal["flags"] = "flags"
    of: tuple[str, ...] = Field(min_length=1, max_length=31, description="raw columns of lists of 0 and 1")

    @model_validator(mode="after")
    def _check(self) -> "EventFlags":
        if len({*self.of}) < len(self.of):
            raise ValueError("a flag is named twice")
        return self


class EventNumbers(_EventColumn):
    """A float an event; a missing one is NaN."""

    kind: Literal["numeric"] = "numeric"
    transform: Literal["none", "log1p"] = "none"


class EventTimes(_EventColumn):
    """When an event was, in Unix ms; null where nobody knows. None may be as late as its row."""

    kind: Literal["time"] = "time"


EventColumn = Annotated[EventIds | EventFlags | EventNumbers | EventTimes, Field(discriminator="kind")]


class EventSequence(Strict):
    """A user's events, oldest first, in columns that are lists of one length in every row."""

    columns: dict[str, EventColumn] = Field(min_length=1)
    max_length: PositiveInt = Field(default=50, description="events that a row reads, the newest that it may see")
    scope: Literal["row", "user"] = Field(default="user", description="as of a feature")

    @model_validator(mode="after")
    def _check(self) -> "EventSequence":
        if sum(isinstance(column, EventTimes) for column in self.columns.values()) > 1:
            raise ValueError("an event has one time; declare one column of `kind: time`")
        return self

    def raw_columns(self) -> dict[str, tuple[str, ...]]:
        """Event column -> raw columns that it is made from."""
        return {
            name: column.of if isinstance(column, EventFlags) else (column.column or name,)
            for name, column in self.columns.items()
        }
