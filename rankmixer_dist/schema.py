"""What a row holds: tables, features, semantic groups and tasks, declared once in `configs/features/<dataset>.yaml`."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

MISSING_ID = 0
"""Row of every table that a missing or unknown id is mapped to; real ids start at 1."""

ID_HASH = 2
"""Version of the hash that takes ids to rows of tables: a change that moves an id to another row has to raise it, so
that no checkpoint's rows are taken for those of other ids. 2 = a string of digits has the row of the integer."""

ROW_ID, USER_ID, TIMESTAMP = "row_id", "user_id", "timestamp"
"""Columns that every prepared row carries beside its features and labels."""

LABEL_PREFIX, TRUTH_PREFIX = "label_", "truth_"
"""Prepared columns `label_<task>`, and `truth_<task>` where a source knows the true probability."""

SCORE_PREFIX = "score_"
"""Columns of predictions `score_<task>`, beside `label_<task>`."""

GROUP_START = "group_start"
"""Prepared column of grouped rows: whether a row is the first of its group, which holds the group's user side."""


TORCH_NAMES = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty
    train training type update values xpu zero_grad
    """.split()
)
"""Names that a table cannot have: torch holds tables as attributes of a module that has these already."""

USER_SLICES = ("user_known", "user_activity")
TIME_SLICES = ("hour", "day")
"""Columns to slice an evaluation by that every dataset has: by the user's rows in the training split, by the clock."""


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


F = TypeVar("F", bound=Strict)


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


class Schema(Strict):
    """All that a dataset's rows hold; the content of a `configs/features/*.yaml` file."""

    tables: dict[str, Table]
    groups: dict[str, PositiveInt] = Field(description="semantic group -> number of tokens, in token order")
    features: dict[str, Feature]
    tasks: dict[str, Task]

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        self._check_names()
        labels = {column: task for task, column in self.label_columns().items()}
        for name, feature in self.features.items():
            column = feature.column or name
            if column in labels:
                raise ValueError(f"feature {name}: column {column!r} is the label of task {labels[column]}")
            if name in (ROW_ID, USER_ID, TIMESTAMP, GROUP_START) or name.startswith((LABEL_PREFIX, TRUTH_PREFIX)):
                raise ValueError(f"feature {name}: the name is taken by prepared data; choose another and set `column`")
            if name in {f"visible_{other}" for other in self.of_kind(SequenceFeature)}:
                raise ValueError(f"feature {name}: grouped rows say there what they see of a sequence; choose another")
            if feature.group not in self.groups:
                raise ValueError(f"feature {name}: group {feature.group!r} is not declared under `groups`")
            table = getattr(feature, "table", None)
            if table is not None and table not in self.tables:
                raise ValueError(f"feature {name}: table {table!r} is not declared under `tables`")
            if isinstance(feature, IdFeature) and feature.boundaries is not None:
                needed = len(feature.boundaries) + 2
                if self.tables[feature.table].rows < needed:
                    raise ValueError(
                        f"feature {name}: {len(feature.boundaries)} boundaries need a table of {needed} rows"
                    )
        for name, feature in self.features.items():
            if isinstance(feature, SequenceFeature) and feature.query is not None:
                query = self.features.get(feature.query)
                if not isinstance(query, IdFeature):
                    raise ValueError(f"feature {name}: query {feature.query!r} is not an id feature")
                if self.tables[query.table].dim != self.tables[feature.table].dim:
                    raise ValueError(f"feature {name}: its table and its query's table differ in dim")
        for group in self.groups:
            if not any(feature.group == group for feature in self.features.values()):
                raise ValueError(f"group {group!r} has no feature; remove it or assign one")
        for table in self.tables:
            if not any(getattr(feature, "table", None) == table for feature in self.features.values()):
                raise ValueError(f"table {table!r} is used by no feature; remove it or use it")
        if not self.tasks:
            raise ValueError("declare at least one task")
        return self

    def _check_names(self) -> None:
        kinds: dict[str, Iterable[str]] = {
            "table": self.tables,
            "group": self.groups,
            "feature": self.features,
            "task": self.tasks,
        }
        for kind, named in kinds.items():
            for name in named:
                if name != name.strip() or not name.isprintable() or not name:
                    raise ValueError(f"{kind} {name!r}: a name has a character at least, and no blanks around it")
        for name, table in self.tables.items():
            if "." in name or name.startswith("_") or name in TORCH_NAMES:
                free = name.replace(".", "_").strip("_") or "ids"
                free += "_table" if free in TORCH_NAMES else ""
                salt = f" (rows of a checkpoint stay those of the same ids with `salt: {table.salt or name}` there)"
                raise ValueError(
                    f"table {name!r}: torch cannot hold a table whose name has a dot, begins with an underscore or is "
                    f"one of its modules' own; call it {free!r}, say{salt if table.ids == 'hash' else ''}"
                )

    @property
    def num_tokens(self) -> int:
        """T, the tokens of all groups."""
        return sum(self.groups.values())

    def of_kind(self, kind: type[F]) -> Mapping[str, F]:
        """Features of one kind, in declared order."""
        return {name: feature for name, feature in self.features.items() if isinstance(feature, kind)}

    def user_side(self) -> tuple[str, ...]:
        """Features whose values are the user's, in declared order."""
        return tuple(name for name, feature in self.features.items() if feature.scope == "user")

    def features_of(self, table: str) -> tuple[str, ...]:
        """Features whose ids are a table's, in declared order."""
        return tuple(name for name, feature in self.features.items() if getattr(feature, "table", None) == table)

    def slices_ask_training(self, columns: Iterable[str]) -> bool:
        """Whether a column to slice by is what the training splits know of a user."""
        return any(column in USER_SLICES and column not in self.features for column in columns)

    def check_slice(self, column: str) -> None:
        """Makes sure that an evaluation can be sliced by a column.

        Raises:
            ValueError: there is no such column, or none with one id a row.
        """
        feature = self.features.get(column)
        if isinstance(feature, NumericFeature):
            raise ValueError(f"{column} is a number; declare it as an id feature with `boundaries` too, and name that")
        if isinstance(feature, MultiIdFeature | SequenceFeature):
            raise ValueError(f"{column} has several ids a row; name a column with one")
        if feature is None and column not in USER_SLICES + TIME_SLICES:
            known = ", ".join(dict.fromkeys([*USER_SLICES, *TIME_SLICES, *self.of_kind(IdFeature)]))
            raise ValueError(f"{column!r} is no column to slice by; there are: {known}")

    def sliced_ids(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Features with one id a row among columns to slice by."""
        return tuple(dict.fromkeys(column for column in columns if isinstance(self.features.get(column), IdFeature)))

    def raw_columns(self) -> dict[str, str]:
        """Feature name -> raw column it is made from."""
        return {name: feature.column or name for name, feature in self.features.items()}

    def label_columns(self) -> dict[str, str]:
        """Task name -> raw label column."""
        return {name: task.column or name for name, task in self.tasks.items()}

    def salt(self, table: str) -> str:
        """The name that salts the hash of a table's ids."""
        return self.tables[table].salt or table

    def unpooled_tables(self) -> frozenset[str]:
        """Tables whose rows are looked up one by one, because a sequence uses them; all others are pooled bags."""
        return frozenset(feature.table for feature in self.of_kind(SequenceFeature).values())

    def bag_features(self) -> tuple[str, ...]:
        """Features that are looked up pooled, in declared order."""
        unpooled = self.unpooled_tables()
        return tuple(n for n, f in self.features.items() if getattr(f, "table", None) not in (None, *unpooled))

    def unpooled_features(self) -> tuple[str, ...]:
        """Features that are looked up one row an id, narrow tables first, those of one width in declared order."""
        unpooled = self.unpooled_tables()
        tables = {name: getattr(feature, "table", None) for name, feature in self.features.items()}
        dims = {name: self.tables[table].dim for name, table in tables.items() if table in unpooled}
        return tuple(sorted(dims, key=lambda name: dims[name]))

    def id_features(self) -> tuple[str, ...]:
        """All features with ids, in the order of `Batch.ids`: what one module looks up is one slice."""
        return self.bag_features() + self.unpooled_features()
