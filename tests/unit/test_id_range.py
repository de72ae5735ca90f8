"""An id that its table has no row for is found on the host, wherever it stands, and named in one line."""

import runpy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_pipeline.id_range import id_beyond_table, key_limit
from data_pipeline.manifest import Manifest, prepared_columns
from data_pipeline.preprocess import preprocess
from data_pipeline.reading import open_prepared, open_split
from data_pipeline.shards import WRITE_OPTIONS
from rankmixer_dist.batch import Position
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.errors import RankError, UserError
from rankmixer_dist.schema import NumericFeature, Schema, SequenceFeature
from tests.unit.test_damaged_data import refusal, small  # noqa: F401


def with_id(table, feature, row, value):
    """The rows with `value` as the last id of a feature in a row that has one."""
    column = table[feature].combine_chunks()
    if isinstance(column, pa.ListArray):
        ids = column.values.to_numpy().copy()
        ids[column.offsets[row + 1].as_py() - 1] = value
        column = pa.ListArray.from_arrays(column.offsets, pa.array(ids), type=column.type)
    else:
        ids = column.to_pylist()
        ids[row] = value
        column = pa.array(ids, column.type)
    place = table.schema.get_field_index(feature)
    return table.set_column(place, table.schema.field(feature), column)


def declared_exact(config, folder):
    """The config with an identity table under the video's features, as if prepared for it: ids are up to 10,098."""
    declared = config.features.model_dump(mode="json")
    declared["tables"]["video"] |= {"ids": "identity", "rows": 10_100}
    schema = Schema.model_validate(declared)
    data = config.data.model_copy(update={"prepared": folder})
    return config.model_copy(update={"features": schema, "data": data})


def test_every_feature_is_looked_at(small, tmp_path):  # noqa: F811
    config = declared_exact(small[0], tmp_path / "prepared")
    manifest = preprocess(config, progress=False)
    schema = config.features
    rows = pq.read_table(config.data.prepared / manifest.splits["train"][0].path)
    assert id_beyond_table(rows, schema) is None
    kinds = set()
    for feature, declared in schema.features.items():
        if isinstance(declared, NumericFeature):
            continue
        end = key_limit(schema, feature)
        kinds.add((declared.kind, end is None))
        lengths = [1 if np.isscalar(value) else len(value or ()) for value in rows[feature].to_pylist()]
        row = int(np.flatnonzero(lengths)[-1])
        assert end is None or id_beyond_table(with_id(rows, feature, row, end - 1), schema) is None
        for value in (end or 0, -1, 2**62, -(2**63)):
            broken = with_id(rows, feature, row, value)
            if end is None:
                assert id_beyond_table(broken, schema) is None
                continue
            told = f"feature '{feature}' holds id {value}, but table '{declared.table}' has {end + 1} rows, "
            if getattr(declared, "boundaries", None):
                told = f"feature '{feature}' holds bucket {value}, but its boundaries make {end} from 0 on"
            assert id_beyond_table(broken, schema).startswith(told)
            # A slice of a list column keeps all its ids behind it; only those of its own rows count.
            assert id_beyond_table(broken.slice(0, row), schema) is None
            assert id_beyond_table(broken.slice(row), schema).startswith(told)
            assert id_beyond_table(broken.drop_columns([feature]), schema) is None
    assert kinds == {("id", False), ("id", True), ("multi_id", True), ("sequence", False)}


@pytest.fixture
def made_by_hand(small, tmp_path):  # noqa: F811
    """A training shard with a sequence's id beyond its table, whose checksum and the manifest's are right.

    Gives the config, the manifest, the shard's path, the row, and what is to be told.
    """
    config = declared_exact(small[0], tmp_path / "prepared")
    manifest = preprocess(config, progress=False)
    schema = config.features
    feature = next(iter(schema.of_kind(SequenceFeature)))
    table = schema.features[feature].table
    path = config.data.prepared / manifest.splits["train"][0].path
    rows = pq.read_table(path).cast(prepared_columns(schema, has_truth=manifest.has_truth))
    lengths = np.array([len(ids) for ids in rows[feature].to_pylist()])
    row = int(np.flatnonzero(lengths)[-1])
    end = schema.tables[table].rows - 1
    pq.write_table(with_id(rows, feature, row, end), path, row_group_size=manifest.row_group_rows, **WRITE_OPTIONS)
    content = manifest.model_dump()
    content["splits"]["train"][0]["checksum"] = file_checksum(path)
    Manifest.model_validate(content).write(config.data.prepared)
    beyond = f"feature '{feature}' holds id {end}, but table '{table}' has {end + 1} rows, for ids from 0 to {end - 1}"
    return config, manifest, path, row, beyond


@pytest.mark.parametrize("rank", [0, 1])
def test_a_shard_made_by_hand_is_refused_by_who_reads_it(made_by_hand, rank):
    config, manifest, path, row, beyond = made_by_hand
    ranks = {"rank": rank, "world_size": 2}
    read = open_prepared(config, ["train"], **ranks)
    loader = open_split(config, read, "train", **ranks, batch_size=16, training=True, pin_memory=False)
    group = row // manifest.row_group_rows
    step, half = divmod(row, 16)
    steps = []
    if rank == half // 8:
        with pytest.raises(RankError) as refused:
            steps.extend(position.row for _, position in loader.epoch(Position(0, 0)))
        assert refusal(refused.value).startswith(f"{path}: row group {group} cannot be read ({beyond})")
        assert steps == [16 * (done + 1) for done in range(step)]
    else:
        assert len(list(loader.epoch(Position(0, 0)))) == loader.steps_per_epoch


def test_the_baseline_refuses_it_too(made_by_hand, tmp_path):
    """SciPy writes beyond its matrix where a multi-hot column holds such an id."""
    config, _, path, _, beyond = made_by_hand
    given = tmp_path / "exact.yaml"
    given.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    with pytest.raises(UserError) as refused:
        runpy.run_path("launch/baseline.py")["main"]([str(given), f"runs={tmp_path}"])
    assert refusal(refused.value) == f"{path}: {beyond}; prepare the data again"
