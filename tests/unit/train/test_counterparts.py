"""What of another run's model means the same here, from the two configs alone."""

import pytest

from rankmixer_dist.config import ModelConfig
from rankmixer_dist.identity import DataSeen, NumericScale, Rename, checksums, parts
from rankmixer_dist.schema import Schema
from rankmixer_dist.train.counterparts import Counterparts
from rankmixer_dist.train.parameter_runs import Run, parameter_runs
from tests.changes import changed

CLIPS = {"kind": "sequence", "table": "clip", "pooling": "mean", "max_length": 5, "group": "who"}


def schema(**changes):
    """Two groups of two features, two tasks; by path `features__age__transform="log1p"`."""
    declared = {
        "tables": {"video": {"rows": 50, "dim": 4}, "length": {"rows": 9, "dim": 8}},
        "groups": {"who": 1, "what": 2},
        "features": {
            "video": {"kind": "id", "table": "video", "group": "what"},
            "length": {"kind": "id", "column": "seconds", "table": "length", "boundaries": [1, 2], "group": "what"},
            "seen": {"kind": "sequence", "table": "video", "query": "video", "max_length": 5, "group": "who"},
            "also": {"kind": "sequence", "table": "video", "pooling": "mean", "max_length": 5, "group": "who"},
            "age": {"kind": "numeric", "group": "who"},
        },
        "tasks": {"finish": {}, "like": {}},
    }
    return Schema.model_validate(changed(declared, changes))


def compare(mine, *, theirs=None, rename=None, my_model=None, their_model=None):
    models = [ModelConfig.model_validate(model or {}) for model in (their_model, my_model)]
    return Counterparts(theirs or schema(), models[0], mine, models[1], Rename(rename or {}))


@pytest.mark.parametrize(
    ("change", "table", "problem"),
    [
        ({}, "video", None),
        ({"tables__video__salt": "video"}, "video", None),
        ({"tables__video__salt": "film"}, "video", "salt was 'video' and is 'film': set features.tables.video.salt"),
        ({"tables__video__rows": 51}, "video", "rows was 50 and is 51"),
        ({"tables__video__ids": "identity"}, "video", "ids was 'hash' and is 'identity'"),
        ({"features__length__boundaries": [1, 3]}, "length", "its boundaries were others"),
        ({"features__length__column": "minutes"}, "length", "its boundaries were others"),
        ({"features__length__boundaries": None}, "length", "its boundaries were others"),
        # A table that only holds buckets has no use for its salt.
        ({"tables__length__salt": "film"}, "length", None),
    ],
)
def test_a_table_is_taken_if_its_rows_are_those_of_the_same_ids(change, table, problem):
    found = compare(schema(**change)).table_problem(table)
    assert found == problem if problem is None else found.startswith(problem)


def test_a_raw_column_may_be_renamed():
    mine = schema(features__length__column="s")
    assert compare(mine).feature_problem("length") == "column was 'seconds' and is 's'"
    renamed = compare(mine, rename={"s": "seconds"})
    assert (renamed.feature_problem("length"), renamed.table_problem("length")) == (None, None)


def test_a_column_that_a_table_holds_twice_counts_in_any_order():
    features = {
        "cut": {"kind": "id", "column": "seconds", "table": "length", "boundaries": [1, 2], "group": "what"},
        "plain": {"kind": "id", "column": "seconds", "table": "length", "group": "what"},
    }
    declared = schema().model_dump(exclude_unset=True)
    declared["features"] |= features
    theirs = Schema.model_validate(declared)
    for boundaries in ([1, 2], [1, 3]):
        features["cut"]["boundaries"] = boundaries
        for order in (features, dict(reversed(features.items()))):
            mine = schema(features=schema().model_dump(exclude_unset=True)["features"] | order)
            problem = compare(mine, theirs=theirs).table_problem("length")
            assert problem == (None if boundaries == [1, 2] else "its boundaries were others")


def test_a_table_that_another_takes_the_name_of_is_told():
    features = {
        "video": {"kind": "id", "column": "music", "table": "video", "group": "what"},
        "clip": {"kind": "id", "column": "video", "table": "clip", "group": "what"},
    }
    mine = schema(
        tables__clip={"rows": 50, "dim": 4, "salt": "video"},
        features={**schema().model_dump(exclude_unset=True)["features"], **features, "seen": CLIPS, "also": CLIPS},
    )
    models = compare(mine, rename={"clip": "video"})
    assert (models.table_problem("clip"), models.table_difference("clip")) == (None, None)
    assert (models.table_problem("video"), models.table_difference("length")) == (None, None)
    assert models.differences()[0] == "table video: its ids were of also, seen, video and are of music"


def test_features_that_swapped_their_names_are_not_each_other():
    swapped = schema(
        features__age__column="height", features__height={"kind": "numeric", "column": "age", "group": "who"}
    )
    theirs = schema(features__height={"kind": "numeric", "group": "who"})
    models = compare(swapped, theirs=theirs)
    assert models.feature_problem("age") == "column was 'age' and is 'height'"
    assert models.feature_problem("height") == "column was 'height' and is 'age'"
    assert models.scales(DataSeen(numerics={name: NumericScale(mean=1, std=2) for name in ("age", "height")})) == {}


def test_a_scale_is_taken_along_unless_it_is_a_constants():
    scale = NumericScale(mean=1, std=2)
    assert compare(schema()).scales(DataSeen(numerics={"age": scale})) == {"age": scale}
    assert compare(schema()).scales(DataSeen(numerics={"age": NumericScale(mean=1, std=0)})) == {}
    logarithm = compare(schema(features__age__transform="log1p"))
    assert logarithm.scales(DataSeen(numerics={"age": scale})) == {}


@pytest.mark.parametrize(
    ("change", "model", "same"),
    [
        ({}, {}, True),
        ({"features__age__group": "what"}, {}, True),
        ({"groups": {"what": 2, "who": 1}}, {}, False),
        ({"groups": {"who": 2, "what": 1}}, {}, False),
        ({}, {"tokenizer": {"kind": "auto_split"}}, False),
        ({}, {"tokenizer": {"global_token": True}}, False),
        ({}, {"backbone": "wukong"}, False),
        ({"tasks": {"like": {}, "finish": {}}}, {}, True),
    ],
)
def test_a_backbones_weights_belong_to_its_tokens(change, model, same):
    shapes = {"backbone.blocks.0.norm.weight": (8,)}
    models = compare(schema(**change), my_model=model)
    assert bool(parameter_runs("backbone.blocks.0.norm.weight", (8,), shapes, models)) == same


def test_heads_go_by_task():
    mine = schema(tasks={"like": {}, "new": {}, "done": {"column": "finish"}, "finish": {"column": "like"}})
    models = compare(mine, rename={"done": "finish"})
    name = "heads.layers.0.weight"
    found = parameter_runs(name, (4, 3, 1), {name: (2, 3, 1)}, models)
    assert found == [Run(name, 0, 3, 3), Run(name, 6, 0, 3)]
    assert models.task_problem("finish") == "column was 'finish' and is 'like'"
    assert parameter_runs(name, (4, 5, 1), {name: (2, 3, 1)}, models) == []


def test_poolings_go_by_sequence():
    turned = schema()
    features = dict(reversed(turned.features.items()))
    models = compare(turned.model_copy(update={"features": features}))
    shapes = {"poolings.0.first.weight": (7,)}
    assert parameter_runs("poolings.1.first.weight", (7,), shapes, models) == [Run("poolings.0.first.weight", 0, 0, 7)]
    assert parameter_runs("poolings.0.first.weight", (7,), shapes, models) == []


def test_a_group_tokenizer_goes_by_group_token_and_column():
    # who: seen 4, also 4, age 2 = 10 columns; what: video 4, length 8 = 12 columns.
    mine = schema(
        features__extra={"kind": "numeric", "group": "what"},
        groups={"what": 2, "who": 1},
    )
    shapes = {"tokenizer.projections.0.weight": (1, 10, 5), "tokenizer.projections.1.weight": (2, 12, 5)}
    shapes |= {"tokenizer.projections.0.bias": (1, 5), "tokenizer.projections.1.bias": (2, 5)}
    models = compare(mine)
    whole = parameter_runs("tokenizer.projections.0.weight", (1, 10, 5), shapes, models)
    assert whole == [Run("tokenizer.projections.0.weight", 0, 0, 50)]
    wider = parameter_runs("tokenizer.projections.1.weight", (2, 14, 5), shapes, models)
    old = "tokenizer.projections.1.weight"
    assert wider == [Run(old, 0, 0, 60), Run(old, 70, 60, 60)]
    bias = parameter_runs("tokenizer.projections.1.bias", (2, 5), shapes, models)
    assert bias == [Run("tokenizer.projections.1.bias", 0, 0, 10)]


@pytest.mark.parametrize("kind", ["chunk", "auto_split"])
def test_a_tokenizer_that_reads_the_whole_row_is_taken_if_the_row_is_the_same(kind):
    model = {"tokenizer": {"kind": kind}}
    shapes = {"tokenizer.outputs.weight": (12, 22)}
    swapped = {"tables__video__dim": 8, "tables__length__dim": 4}
    narrow = {"features__seen": CLIPS | {"table": "video"}, "features__also": {"kind": "numeric", "group": "who"}}
    for change, taken in (({}, True), ({"features__age__transform": "log1p"}, False)):
        models = compare(schema(**change), my_model=model, their_model=model)
        assert bool(parameter_runs("tokenizer.outputs.weight", (12, 22), shapes, models)) == taken
    turned = compare(schema(**narrow, **swapped), theirs=schema(**narrow), my_model=model, their_model=model)
    assert not turned.changed_groups()
    assert parameter_runs("tokenizer.outputs.weight", (12, 22), shapes, turned) == []


def test_every_part_has_a_checksum_that_new_options_leave_alone():
    model = ModelConfig.model_validate({})
    found = checksums(schema(), model)
    assert found.keys() == parts(schema(), model).keys()

    class WithMore(ModelConfig):
        more: int = 1

    assert checksums(schema(), WithMore()) == found
    assert checksums(schema(), WithMore(more=2)) | {"model": ""} == found | {"model": ""}
    assert checksums(schema(), WithMore(more=2))["model"] != found["model"]
    changes = [
        ({"tables__video__salt": "film"}, {"table video"}),
        ({"tables__video__salt": "video"}, set()),
        ({"features__age": {"kind": "numeric", "group": "what"}}, {"feature age"}),
        ({"features__length__boundaries": [1, 3]}, {"feature length"}),
        ({"tasks": {"finish": {}, "like": {"column": "heart"}}}, {"task like"}),
        ({"tasks": {"finish": {"weight": 2}, "like": {"unknown": "mask"}}}, set()),
        ({"tasks": {"like": {}, "finish": {}}}, {"order"}),
        ({"groups": {"who": 2, "what": 2}}, {"group who"}),
    ]
    for change, differing in changes:
        other = checksums(schema(**change), model)
        assert {part for part in found if other[part] != found[part]} == differing
