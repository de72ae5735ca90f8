"""An id that its table has no row for is found on the host, wherever it stands, and named in one line."""

import runpy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.id_range import IdLimits, id_beyond_table
from data_pipeline.manifest import Manifest, prepared_columns
from data_pipeline.reading import open_prepared, open_split
from data_pipeline.shards import WRITE_OPTIONS
from rankmixer_dist.batch import Position
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.errors import RankError, UserError
from rankmixer_dist.schema import NumericFeature, SequenceFeature
from tests.unit.test_damaged_data import prepared, refusal, small  # noqa: F401


def with_id(table, feature, row, value):
    """The rows with `value` as the last id of a feature in a row that has one."""
    column = table[feature].combine_chunks()
    if isinstance(column, pa.ListArray):
        ids = column.values.to_numpy().copy()
        ids[column.offsets[row + 1].as_py() - 1] = value
        column = pa.ListArray.from_arrays(column.offsets, pa.array(ids), type=column.type)
    else:
        ids = column.to_numpy().copy()
        ids[row] = value
        column = pa.array(ids)
    place = table.schema.get_field_index(feature)
    return table.set_column(place, table.schema.field(feature), column)


def test_every_feature_is_looked_at(prepared):  # noqa: F811
    config, manifest, _ = prepared
    schema = config.features
    rows = pq.read_table(config.data.prepared / manifest.splits["train"][0].path)
    assert id_beyond_table(rows, schema) is None
    kinds = set()
    for feature, declared in schema.features.items():
        if isinstance(declared, NumericFeature):
            continue
        kinds.add(declared.kind)
        end = schema.tables[declared.table].rows
        lengths = [1 if np.isscalar(value) else len(value) for value in rows[feature].to_pylist()]
        row = int(np.flatnonzero(lengths)[-1])
        assert id_beyond_table(with_id(rows, feature, row, end - 1), schema) is None
        for value in (end, -1, 2**62, -(2**63)):
            told = f"feature '{feature}' holds id {value}, but table '{declared.table}' has {end} rows"
            broken = with_id(rows, feature, row, value)
            assert id_beyond_table(broken, schema) == told
            # A slice of a list column keeps all its ids behind it; only those of its own rows count.
            assert id_beyond_table(broken.slice(0, row), schema) is None
            assert id_beyond_table(broken.slice(row), schema) == told
            assert id_beyond_table(broken.drop_columns([feature]), schema) is None
    assert kinds == {"id", "multi_id", "sequence"}


def test_the_first_and_last_id_of_each_feature_of_a_batch(small):  # noqa: F811
    config, _ = small
    schema = config.features
    limits, features = IdLimits(schema), schema.id_features()
    ends = [schema.tables[schema.features[name].table].rows for name in features]
    assert len(set(ends)) > 2
    counts = [3 * (place % 3) for place in range(len(features))]  # some features have no ids
    starts = np.cumsum(counts) - counts
    good = np.concatenate([np.full(count, end - 1) for count, end in zip(counts, ends, strict=True)])
    assert limits.keep(good, counts)
    assert limits.keep(good[:0], [0] * len(features))
    for start, count, end in zip(starts, counts, ends, strict=True):
        for place in [start, start + count - 1] if count else []:
            for value in (end, -1, 2**63 - 1, -(2**63)):
                ids = good.copy()
                ids[place] = value
                assert not limits.keep(ids, counts)


@pytest.fixture
def made_by_hand(prepared):  # noqa: F811
    """A training shard with a sequence's id beyond its table, whose checksum and the manifest's are right.

    Gives the config, the manifest, the shard's path, the row, and what is to be told.
    """
    config, manifest, _ = prepared
    schema = config.features
    feature = next(iter(schema.of_kind(SequenceFeature)))
    table = schema.features[feature].table
    path = config.data.prepared / manifest.splits["train"][0].path
    rows = pq.read_table(path).cast(prepared_columns(schema, has_truth=manifest.has_truth))
    lengths = np.array([len(ids) for ids in rows[feature].to_pylist()])
    row = int(np.flatnonzero(lengths)[-1])
    end = schema.tables[table].rows
    pq.write_table(with_id(rows, feature, row, end), path, row_group_size=manifest.row_group_rows, **WRITE_OPTIONS)
    content = manifest.model_dump()
    content["splits"]["train"][0]["checksum"] = file_checksum(path)
    Manifest.model_validate(content).write(config.data.prepared)
    return config, manifest, path, row, f"feature '{feature}' holds id {end}, but table '{table}' has {end} rows"


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
    given = config.data.prepared.parent / "small.yaml"
    with pytest.raises(UserError) as refused:
        runpy.run_path("launch/baseline.py")["main"]([str(given), f"runs={tmp_path}"])
    assert refusal(refused.value) == f"{path}: {beyond}; prepare the data again"
