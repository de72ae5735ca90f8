"""Wrong input ends a verb with exit code 2 and one line that says what to change; nothing is left half-written."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_pipeline.manifest import read_manifest
from data_pipeline.row_order import RowOrder
from data_pipeline.shards import WRITE_OPTIONS
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.checksum import file_checksum
from rankmixer_dist.config import load_config


def refuse(process, *words):
    """The one line of the refusal, which holds all `words`."""
    assert process.returncode == 2, (process.returncode, process.stderr[-2000:])
    *progress, last = [line for line in process.stderr.splitlines() if line.strip()]
    assert last.startswith("error: ")
    assert not any(word in line for line in progress for word in ("error", "Traceback")), process.stderr
    for word in words:
        assert word in last, (word, last)


@pytest.fixture
def copied(small_config, tmp_path):
    """A copy of the small run's config, raw log and prepared data, to break."""
    config = yaml.safe_load(small_config.read_text())
    for section, key in (("source", "path"), ("data", "prepared")):
        shutil.copytree(config[section][key], tmp_path / key)
        config[section][key] = str(tmp_path / key)
    config["runs"] = str(tmp_path / "runs")
    path = tmp_path / "copied.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_an_unknown_key(launch, copied):
    for verb in ("preprocess", "train", "evaluate"):
        process = launch.python(f"launch/{verb}.py", str(copied), "model.token_dims=64")
        refuse(process, "unknown key model.token_dims", "did you mean 'token_dim'")
    assert not load_config(copied).runs.exists()


def test_a_batch_that_the_ranks_cannot_share(launch, copied):
    process = launch.forked("launch/train.py", str(copied), "loader.batch_size=127", ranks=2)
    assert process.returncode == 2
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: batch size 127 cannot be shared evenly by 2 ranks; use 126 or 128, say"]
    assert not load_config(copied).runs.exists()


@pytest.mark.parametrize(
    ("ranks", "overrides", "told"),
    [
        (3, ["parallel.expert_size=3"], "parallel.expert_size: expert size 3 does not divide the 8 tokens; use one of"),
        (2, ["parallel.expert_size=4"], "parallel.expert_size: expert size 4 does not divide the 2 ranks; use one of"),
        (
            2,
            ["parallel.expert_size=2", "model.backbone=dcn_v2"],
            "parallel.expert_size: only rankmixer, tokenmixer_large",
        ),
    ],
)
def test_experts_that_the_ranks_cannot_share(launch, copied, ranks, overrides, told):
    process = launch.forked("launch/train.py", str(copied), "loader.batch_size=126", *overrides, ranks=ranks)
    assert process.returncode == 2
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {told}"), process.stderr[-2000:]
    assert not load_config(copied).run_dir.joinpath("config.yaml").exists()


def test_a_shard_that_changed(launch, copied):
    shard = sorted(load_config(copied).data.prepared.rglob("*.parquet"))[-1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    split = "train" if "train" in str(shard) else "test"
    verb, key = ("train", "train.split") if split == "train" else ("evaluate", "eval.split")
    refuse(launch.forked(f"launch/{verb}.py", str(copied), f"{key}={split}"), shard.name, "checksum")
    assert not load_config(copied).runs.exists()


def test_damage_that_only_the_second_rank_meets(launch, copied):
    config = load_config(copied)
    manifest = read_manifest(config.data.prepared, config.features)
    shards, size = manifest.splits["train"], config.data.row_group_rows
    places = [(shard, group) for shard in shards for group in range(shard.row_groups)]
    rows = np.array([min(size, shard.rows - group * size) for shard, group in places])
    files = np.array([shards.index(shard) for shard, _ in places])
    batch = config.loader.batch_size
    order = RowOrder.of(rows, files, shuffle="chunks", seed=config.seed, epoch=0, batch_size=batch, lanes=1)
    share = batch // 2
    starts, ends = order.starts[:-1], order.starts[1:] - 1
    seconds = np.flatnonzero((starts // share % 2 == 1) & (starts // share == ends // share))
    shard, group = places[order.chunks[seconds[0]]]
    path = config.data.prepared / shard.path
    column = pq.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    process = launch.torchrun("launch/train.py", str(copied), "data.verify_checksums=false", ranks=2)
    refuse(process, f"{path}: row group {group} cannot be read")


def with_an_id_beyond_its_table(config, split, row):
    """Puts one into the first shard of a split and gives the shard a checksum that fits; what is to be told of it."""
    manifest = read_manifest(config.data.prepared, config.features)
    shard, size = manifest.splits[split][0], config.data.row_group_rows
    path = config.data.prepared / shard.path
    rows = pq.read_table(path)
    ids, end = rows["hour"].to_pylist(), config.features.tables["hour"].rows - 1
    ids[row] = end
    place = rows.schema.get_field_index("hour")
    rows = rows.set_column(place, rows.schema.field(place), pa.array(ids))
    pq.write_table(rows, path, row_group_size=size, **WRITE_OPTIONS)
    shard = shard.model_copy(update={"checksum": file_checksum(path)})
    splits = manifest.splits | {split: [shard, *manifest.splits[split][1:]]}
    manifest.model_copy(update={"splits": splits}).write(config.data.prepared)
    told = f"feature 'hour' holds id {end}, but table 'hour' has {end + 1} rows, for ids from 0 to {end - 1}"
    return f"{path}: row group {row // size} cannot be read ({told})"


def test_an_id_beyond_its_table_in_the_middle_of_a_run(launch, copied):
    """What was trained before it stays; the rank that waits for the one that met it says nothing."""
    config = load_config(copied)
    told = with_an_id_beyond_its_table(config, "train", 720)  # the 80th row of the sixth batch
    options = (str(copied), "loader.shuffle=none", "checkpoint.every=2")
    refuse(launch.torchrun("launch/train.py", *options, ranks=2), told)
    assert checkpoints(config.run_dir)[-1].name == "step-00000004"
    told = with_an_id_beyond_its_table(config, "test", 140)  # the twelfth row of the second batch
    refuse(launch.torchrun("launch/evaluate.py", *options, "data.verify_checksums=false", ranks=2), told)
    assert not config.run_dir.joinpath("predictions.partial").exists()


def test_a_missing_column(launch, copied):
    prepared = load_config(copied).data.prepared
    shutil.rmtree(prepared)
    override = "features.features.activity.column=activty"
    refuse(launch.python("launch/preprocess.py", str(copied), override), "activty", "activity")
    assert not list(prepared.parent.glob("prepared*"))


def break_first_log(config, change):
    path = sorted(config.source.path.glob("log_*.parquet"))[0]
    pq.write_table(change(pq.read_table(path)), path)
    return path


def test_a_label_that_is_not_0_or_1(launch, copied):
    config = load_config(copied)
    shutil.rmtree(config.data.prepared)

    def with_a_two(table):
        labels = table["finish"].to_pylist()
        labels[3] = 2
        place = table.column_names.index("finish")
        return table.set_column(place, "finish", pa.array(labels, table["finish"].type))

    path = break_first_log(config, with_a_two)
    refuse(launch.python("launch/preprocess.py", str(copied)), path.name, "finish", "set_aside")
    assert not list(config.data.prepared.parent.glob("prepared*"))
    kept = launch.python("launch/preprocess.py", str(copied), "data.on_bad_row=set_aside")
    assert kept.returncode == 0, kept.stderr
    aside = (config.data.prepared / "set_aside").rglob("*.parquet")
    assert sum(pq.read_metadata(file).num_rows for file in aside) == 1


def test_an_unreadable_log_among_good_ones(launch, copied):
    config = load_config(copied)
    shutil.rmtree(config.data.prepared)
    broken = sorted(config.source.path.glob("log_*.parquet"))[1]
    broken.write_bytes(b"not parquet")
    refuse(launch.python("launch/preprocess.py", str(copied)), broken.name, "skip")
    assert not list(config.data.prepared.parent.glob("prepared*"))
    rest = launch.python("launch/preprocess.py", str(copied), "data.on_unreadable_file=skip")
    assert rest.returncode == 0, rest.stderr
    assert broken.name in rest.stderr


def test_a_run_directory_of_another_config(launch, copied):
    process = launch.forked("launch/train.py", str(copied), "train.max_steps=2")
    assert process.returncode == 0, process.stderr[-2000:]
    before = sorted((path, path.stat().st_mtime_ns) for path in load_config(copied).run_dir.rglob("*"))
    other = launch.python("launch/train.py", str(copied), "dense.lr=0.5")
    refuse(other, "already holds another config", "dense.lr", "0.5")
    assert sorted((path, path.stat().st_mtime_ns) for path in load_config(copied).run_dir.rglob("*")) == before
    refuse(launch.python("launch/evaluate.py", str(copied), "dense.lr=0.5"), "dense.lr")


def test_no_data_and_no_run(launch, copied):
    config = load_config(copied)
    refuse(launch.python("launch/evaluate.py", str(copied)), "no run here", "launch/train.py")
    shutil.rmtree(config.data.prepared)
    refuse(launch.python("launch/train.py", str(copied)), "launch/preprocess.py")
    refuse(launch.python("launch/train.py", str(copied.with_name("none.yaml"))), "none.yaml", "no such file")
