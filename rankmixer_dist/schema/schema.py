"""All that a dataset's rows hold, and that its parts go together."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from pydantic import Field, PositiveInt, model_validator

from rankmixer_dist.schema.events import EventIds, EventSequence
from rankmixer_dist.schema.features import (
    Feature,
    IdFeature,
    MultiIdFeature,
    NumericFeature,
    SequenceFeature,
    Strict,
    Table,
    Task,
)
from rankmixer_dist.schema.names import (
    LABEL_PREFIX,
    ROW_ID,
    TIME_SLICES,
    TIMESTAMP,
    TORCH_NAMES,
    TRUTH_PREFIX,
    USER_ID,
    USER_SLICES,
)

F = TypeVar("F", bound=Strict)


class Schema(Strict):
    """All that a dataset's rows hold; the content of a `configs/features/*.yaml` file."""

    tables: dict[str, Table]
    groups: dict[str, PositiveInt] = Field(description="semantic group -> number of tokens, in token order")
    features: dict[str, Feature]
    sequences: dict[str, EventSequence] = Field(
        default={}, description="events in aligned columns; a `kind: sequence` feature is short for one column of ids"
    )
    tasks: dict[str, Task]

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        self._check_names()
        labels = {column: task for task, column in self.label_columns().items()}
        for name, feature in self.features.items():
            column = feature.column or name
            if column in labels:
                raise ValueError(f"feature {name}: column {column!r} is the label of task {labels[column]}")
            if name in (ROW_ID, USER_ID, TIMESTAMP) or name.startswith((LABEL_PREFIX, TRUTH_PREFIX)):
                raise ValueError(f"feature {name}: the name is taken by prepared data; choose another and set `column`")
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
        self._check_sequences(labels)
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
            if not self.features_of(table) and table not in self.event_ids().values():
                raise ValueError(f"table {table!r} is used by no feature; remove it or use it")
        if not self.tasks:
            raise ValueError("declare at least one task")
        return self

    def _check_sequences(self, labels: Mapping[str, str]) -> None:
        for name, sequence in self.sequences.items():
            taken = name in self.features or name in (ROW_ID, USER_ID, TIMESTAMP)
            if taken or name.startswith((LABEL_PREFIX, TRUTH_PREFIX)) or "." in name:
                raise ValueError(f"sequence {name}: the name is a column's, or has a dot; choose another")
            for column, raw in sequence.raw_columns().items():
                for label in labels.keys() & raw:
                    raise ValueError(f"sequence {name}: column {label!r} is the label of task {labels[label]}")
                table = getattr(sequence.columns[column], "table", None)
                if table is not None and table not in self.tables:
                    raise ValueError(f"sequence {name}: table {table!r} is not declared under `tables`")

    def _check_names(self) -> None:
        kinds: dict[str, Iterable[str]] = {
            "table": self.tables,
            "group": self.groups,
            "feature": self.features,
            "sequence": self.sequences,
            **{f"column of {name}": sequence.columns for name, sequence in self.sequences.items()},
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
        """Features and sequences whose values are the user's, in declared order."""
        declared = (*self.features.items(), *self.sequences.items())
        return tuple(name for name, each in declared if each.scope == "user")

    def event_ids(self) -> Mapping[str, str]:
        """`<sequence>.<column>` of the columns of ids that events have -> the table."""
        return {
            f"{name}.{column}": each.table
            for name, sequence in self.sequences.items()
            for column, each in sequence.columns.items()
            if isinstance(each, EventIds)
        }

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

    def event_columns(self) -> tuple[str, ...]:
        """Raw columns that events are made from."""
        used = (raw for sequence in self.sequences.values() for each in sequence.raw_columns().values() for raw in each)
        return tuple(dict.fromkeys(used))

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
