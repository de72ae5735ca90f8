"""Prepared data that was damaged after it was written is refused in one line, whatever the damage."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.preprocess import preprocess
from data_pipeline.reading import open_prepared, open_split
from rankmixer_dist.batch import Position
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The config of 400 prepared rows, and their manifest."""
    folder = tmp_path_factory.mktemp("damaged")
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config["features"] = str(ROOT / "configs" / config["features"])
    config["source"] |= {"path": str(folder / "raw"), "rows": 400, "users": 20, "videos": 20}
    config["data"] |= {"prepared": str(folder / "prepared"), "row_group_rows": 8, "shard_rows": 128, "job": "serial"}
    config["loader"] = {"batch_size": 16, "prefetch": 1, "shuffle": "none"}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    config = load_config(path)
    return config, preprocess(config, progress=False)


@pytest.fixture
def prepared(small):
    """The same, with every file put back as it was after the test; and the good bytes, by path."""
    config, manifest = small
    shards = [config.data.prepared / shard.path for split in SPLITS for shard in manifest.splits[split]]
    good = {path: path.read_bytes() for path in (config.data.prepared / MANIFEST_NAME, *shards)}
    yield config, manifest, good
    for path, content in good.items():
        path.write_bytes(content)


def flip_a_bit(random, content):
    place = random.integers(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.integers(8)]) + content[place + 1 :]


def change_a_byte(random, content):
    place = random.integers(len(content))
    return content[:place] + bytes([(content[place] + random.integers(1, 256)) % 256]) + content[place + 1 :]


def cut_short(random, content):
    return content[: random.integers(len(content))]


def refusal(error):
    """The text of a refusal, which is one line."""
    assert "\n" not in str(error)
    return str(error)


def outcome(function, *arguments):
    """What a call returns, or how it is refused."""
    try:
        return function(*arguments)
    except UserError as error:
        return error


def opened(config):
    """The manifest, opened as training does."""
    return open_prepared(config, SPLITS, rank=0, world_size=1)


@pytest.mark.parametrize(("damage", "times"), [(flip_a_bit, 250), (change_a_byte, 150), (cut_short, 100)])
def test_a_damaged_file_is_refused(prepared, damage, times):
    config, manifest, good = prepared
    paths = list(good)
    for seed in range(times):
        random = np.random.default_rng(seed)
        path = paths[0] if seed % 2 else paths[random.integers(1, len(paths))]
        content = damage(random, good[path])
        path.write_bytes(content)
        found = outcome(opened, config)
        if isinstance(found, UserError):
            assert refusal(found).startswith(f"{path}: "), seed
            assert "prepare the data again" in str(found), seed
        else:
            # White space, or a digit of a float too small to count: what the manifest says is the same.
            assert path.name == MANIFEST_NAME, seed
            assert json.loads(content) == json.loads(good[path]), seed
            assert found == manifest, seed
        path.write_bytes(good[path])
    assert opened(config) == manifest


def test_every_changed_digit_of_the_manifest_is_refused(prepared):
    config, _, good = prepared
    path, content = next(iter(good.items()))
    text = content.decode()
    random = np.random.default_rng(0)
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    for place in random.choice(digits, 100, replace=False):
        digit = random.choice([digit for digit in "123456789" if digit != text[place]])
        changed = text[:place] + digit + text[place + 1 :]
        if json.loads(changed) == json.loads(text):  # the 17th digit of a float
            continue
        path.write_text(changed)
        with pytest.raises(
            UserError, match=r"(its checksum is not that of|format version .*) .*prepare the data again"
        ):
            opened(config)


def test_a_missing_file_is_refused(prepared):
    config, _, good = prepared
    for path in good:
        path.unlink()
        with pytest.raises(UserError, match="no such file") as refused:
            opened(config)
        assert str(path) in refusal(refused.value)
        path.mkdir()
        with pytest.raises(UserError, match="cannot be read") as refused:
            opened(config)
        assert str(path) in refusal(refused.value)
        path.rmdir()
        path.write_bytes(good[path])


def test_files_that_changed_places_are_refused(prepared):
    config, _, good = prepared
    pairs = [(one, other) for one in good for other in good if one != other]
    for one, other in pairs:
        one.write_bytes(good[other])
        other.write_bytes(good[one])
        with pytest.raises(UserError) as refused:
            opened(config)
        assert refusal(refused.value).startswith((f"{one}: ", f"{other}: "))
        for path in (one, other):
            path.write_bytes(good[path])


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("damage", [change_a_byte, cut_short])
def test_preprocess_says_what_to_do_with_a_damaged_folder(prepared, which, damage):
    config, _, good = prepared
    path = list(good)[which]
    path.write_bytes(damage(np.random.default_rng(1), good[path]))
    with pytest.raises(UserError, match="never overwritten, so delete or rename it") as refused:
        preprocess(config, progress=False)
    assert refusal(refused.value).startswith(f"{path}: ")


def reading(config, manifest, split="train"):
    """An epoch of a loader that nothing was verified for."""
    unverified = config.model_copy(update={"data": config.data.model_copy(update={"verify_checksums": False})})
    assert open_prepared(unverified, SPLITS, rank=0, world_size=1) == manifest
    loader = open_split(
        unverified, manifest, split, rank=0, world_size=1, batch_size=16, training=True, pin_memory=False
    )
    return loader.epoch(Position(0, 0))


def values(epoch):
    """All that was read, bit by bit."""
    return [
        tensor.numpy().tobytes()
        for batch, _ in epoch
        for tensor in (batch.row_id_B, batch.user_id_B, batch.timestamp_B, batch.labels_BK, batch.numerics_BN,
                       batch.ids.values, batch.ids.lengths_FB)
    ]  # fmt: skip


@pytest.mark.parametrize("damage", [flip_a_bit, change_a_byte, cut_short])
def test_damage_that_was_not_looked_for_ends_the_reading(prepared, damage):
    config, manifest, good = prepared
    wanted = values(reading(config, manifest, "test"))
    path = config.data.prepared / manifest.splits["test"][0].path
    refused = 0  # a footer, a large part of such a small file, and page headers have no checksum but the file's
    for seed in range(80):
        path.write_bytes(damage(np.random.default_rng(seed), good[path]))
        found = outcome(lambda: values(reading(config, manifest, "test")))
        if isinstance(found, UserError):
            assert refusal(found).startswith(f"{path}: "), seed
            refused += 1
        else:
            assert found == wanted, seed  # a statistic, or an offset that nothing reads
    assert refused > 40


@pytest.mark.parametrize("cut", [True, False])
def test_a_shard_damaged_while_it_is_read_ends_the_reading(prepared, cut, monkeypatch):
    monkeypatch.setattr("data_pipeline.loader._ROWS_AT_ONCE", 16)  # of so few rows all would be read at first
    config, manifest, good = prepared
    path = config.data.prepared / manifest.splits["train"][0].path
    group = manifest.splits["train"][0].row_groups - 1
    column = pq.read_metadata(path).row_group(group).column(0)
    last = column.data_page_offset + column.total_compressed_size - 1
    epoch = reading(config, manifest)
    next(epoch)  # the file is open, and its last row group further ahead than the loader reads
    with path.open("r+b") as file:
        if cut:
            file.truncate(last)
        else:
            file.seek(last)
            file.write(bytes([good[path][last] ^ 1]))
    with pytest.raises(UserError, match=rf"{path}: row group {group} cannot be read \(.*\); .* prepare the data again"):
        list(epoch)
