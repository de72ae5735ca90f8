"""What can be declared of a dataset: tables, features of four kinds, and tasks."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class Strict(BaseModel):
    """Base of all declarations: immutable, and an unknown key, or a number that is not finite, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Table(Strict):
    """An embedding table. Features that name the same table share its rows and its id mapping."""

    rows: PositiveInt = Field(description="rows, the missing-id row 0 included")
    dim: PositiveInt = Field(description="embedding width")
    ids: Literal["hash", "identity"] = Field(
        default="hash",
        description="hash: any integer or string, hashed into [1, rows); identity: integers 0..rows-2, kept in order. "
        "An integer, a whole float and a string of its digits (no leading zero, plus or space) are one id",
    )
    salt: str | None = Field(
        default=None,
        min_length=1,
        description="of hash: the name that says which row an id falls into, the table's own by default; a table that "
        "is renamed keeps its rows by its old name here",
    )

    @model_validator(mode="after")
    def _check(self) -> "Table":
        if self.rows < 2:
            raise ValueError("a table needs at least 2 rows: row 0 stands for a missing id")
        if self.dim % 4:
            raise ValueError(f"dim {self.dim} is not a multiple of 4, which the fused kernels need")
        if self.salt is not None and self.ids == "identity":
            raise ValueError("salt goes with ids: hash; ids: identity keeps integers in order, remove the salt")
        return self

    @property
    def bytes(self) -> int:
        """Memory in training: fp32 weights and one fp32 accumulator a row."""
        return self.rows * (self.dim + 1) * 4


class _Feature(Strict):
    column: str | None = Field(default=None, description="raw column; the feature's own name by default")
    group: str = Field(description="semantic group that it belongs to")
    scope: Literal["row", "user"] = Field(
        default="row",
        description="user: the value is the user's, and rows that `data.group` groups share it; row: the row's own",
    )


class IdFeature(_Feature):
    """One id a row; with `boundaries`, a number cut into buckets."""

    kind: Literal["id"] = "id"
    table: str
    boundaries: tuple[float, ...] | None = Field(
        default=None, description="ascending cut points: a number becomes the index of its bucket"
    )

    @model_validator(mode="after")
    def _check(self) -> "IdFeature":
        if self.boundaries is not None and sorted(set(self.boundaries)) != list(self.boundaries):
            raise ValueError("boundaries must ascend strictly")
        return self


class MultiIdFeature(_Feature):
    """A bag of ids a row, pooled inside the table lookup."""

    kind: Literal["multi_id"] = "multi_id"
    table: str
    pooling: Literal["sum", "mean"] = "mean"
    separator: str | None = Field(
        default=None, min_length=1, description="set when the raw column is one joined string"
    )


class SequenceFeature(_Feature):
    """An ordered behaviour sequence, oldest first; the newest `max_length` ids are kept."""

    kind: Literal["sequence"] = "sequence"
    table: str
    max_length: PositiveInt = 50
    pooling: Literal["target_attention", "mean"] = "target_attention"
    query: str | None = Field(default=None, description="id feature that attends to the sequence (target attention)")

    @model_validator(mode="after")
    def _check(self) -> "SequenceFeature":
        if (self.pooling == "target_attention") != (self.query is not None):
            raise ValueError("target_attention needs `query`, the id feature that attends; mean takes none")
        return self


class NumericFeature(_Feature):
    """A float a row; standardised with the training split's statistics, missing values kept as such."""

    kind: Literal["numeric"] = "numeric"
    transform: Literal["none", "log1p"] = "none"


Feature = Annotated[IdFeature | MultiIdFeature | SequenceFeature | NumericFeature, Field(discriminator="kind")]


class Task(Strict):
    """A binary label to predict."""

    column: str | None = Field(default=None, description="raw label column; the task's own name by default")
    weight: float = Field(default=1.0, gt=0, description="weight of the task's loss in the total")
    unknown: Literal["refuse", "mask"] = Field(
        default="refuse",
        description="a null raw label: refuse takes it for a bad row; mask keeps the row, which neither trains nor "
        "scores this task",
    )
