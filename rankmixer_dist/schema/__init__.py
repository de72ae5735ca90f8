"""What a row holds: tables, features, semantic groups and tasks, declared once in `configs/features/<dataset>.yaml`."""

from rankmixer_dist.schema.events import EventColumn, EventFlags, EventIds, EventNumbers, EventSequence, EventTimes
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
    GROUP_START,
    ID_HASH,
    LABEL_PREFIX,
    MISSING_ID,
    ROW_ID,
    SCORE_PREFIX,
    TIME_SLICES,
    TIMESTAMP,
    TORCH_NAMES,
    TRUTH_PREFIX,
    USER_ID,
    USER_SLICES,
)
from rankmixer_dist.schema.schema import (
    Schema,
)

__all__ = [
    "GROUP_START",
    "ID_HASH",
    "LABEL_PREFIX",
    "MISSING_ID",
    "ROW_ID",
    "SCORE_PREFIX",
    "TIMESTAMP",
    "TIME_SLICES",
    "TORCH_NAMES",
    "TRUTH_PREFIX",
    "USER_ID",
    "USER_SLICES",
    "EventColumn",
    "EventFlags",
    "EventIds",
    "EventNumbers",
    "EventSequence",
    "EventTimes",
    "Feature",
    "IdFeature",
    "MultiIdFeature",
    "NumericFeature",
    "Schema",
    "SequenceFeature",
    "Strict",
    "Table",
    "Task",
]
