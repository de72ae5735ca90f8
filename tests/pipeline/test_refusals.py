"""What a damaged or ill-fitting log ends in, on Ray as in one process, and that it leaves nothing behind."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.job import RayJob, SerialJob
from data_pipeline.key_range import KeyRange
from data_pipeline.preprocess import preprocess
from data_pipeline.reading import find_prepared
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError

JOBS = pytest.mark.parametrize("job", [SerialJob, pytest.param(RayJob, marks=pytest.mark.ray)])


@pytest.fixture
def log(small_config, tmp_path):
    """A copy of the small log to break, and a function that prepares it."""
    folder = tmp_path / "raw"
    shutil.copytree(load_config(small_config).source.path, folder)

    def prepare(job, *overrides):
        paths = [f"source.path={folder}", f"data.prepared={tmp_path / 'prepared'}"]
        return preprocess(load_config(small_config, [*paths, *overrides]), progress=False, job=job)

    return folder, prepare


def replace(path, column, changes):
    """Rewrites a log file with some values of a column changed; the number of its rows."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    for row, value in changes.items():
        values[row] = value
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table[column].type)), path)
    return table.num_rows


def logs(folder):
    return sorted(folder.glob("log_*.parquet"))


def nothing_was_left(folder):
    return [path.name for path in folder.parent.iterdir()] == ["raw"]


@JOBS
def test_the_first_bad_row_is_named_and_all_are_counted(log, job):
    folder, prepare = log
    replace(logs(folder)[3], "hour", {2: 31})
    replace(logs(folder)[1], "like", {7: 2, 9: None})
    with pytest.raises(UserError) as refused:
        prepare(job())
    where, _, why = str(refused.value).partition(" (from 0): ")
    assert where == f"{logs(folder)[1]}: row 7"
    assert why == (
        "label_not_0_or_1: column 'like' is 2; 3 of 3,000 rows are bad; mend them, or set features.tasks.like.unknown="
        "mask, which keeps the 1 rows without 'like', or raise features.tables.hour.rows, which keeps the 1 rows with "
        "a higher 'hour', or set data.on_bad_row=set_aside, which leaves them out"
    )
    assert nothing_was_left(folder)


@JOBS
def test_bad_rows_are_set_aside_as_they_were_read(log, job):
    folder, prepare = log
    rows = replace(logs(folder)[3], "hour", {2: 31})
    replace(logs(folder)[1], "like", {7: 2, 9: None})
    replace(logs(folder)[1], "user_id", {7: None})
    manifest = prepare(job(), "data.on_bad_row=set_aside")
    assert manifest.set_aside == {"id_beyond_table": 1, "label_not_0_or_1": 1, "missing_user_id": 1}
    assert manifest.key_ranges == {"hour": KeyRange(rows=32, beyond=1, highest=23)}
    assert manifest.raw_rows == 3000 == manifest.rows("train") + manifest.rows("test") + 3
    aside = folder.parent / "prepared" / "set_aside"
    (late,) = pq.read_table(aside / "id_beyond_table.parquet").to_pylist()
    source = pq.read_table(logs(folder)[3])
    assert rows == source.num_rows
    assert {name: late[name] for name in source.column_names} == source.slice(2, 1).to_pylist()[0]
    assert (late["row_id"], late["set_aside_detail"]) == ((3 << 40) + 2, "hour")
    (nobody,) = pq.read_table(aside / "missing_user_id.parquet").to_pylist()
    assert (nobody["row_id"], nobody["like"]) == ((1 << 40) + 7, 2)


def damage_first_page(path):
    """Breaks the data of a file whose footer stays good."""
    place = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 16] = b"\xff" * 16
    path.write_bytes(data)


@JOBS
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"PAR1"), damage_first_page])
def test_an_unreadable_file_among_good_ones(log, job, damage, capfd):
    folder, prepare = log
    broken = logs(folder)[2]
    lost = pq.read_metadata(broken).num_rows
    damage(broken)
    with pytest.raises(UserError, match=rf"{broken}.*data\.on_unreadable_file=skip"):
        prepare(job())
    assert nothing_was_left(folder)
    manifest = prepare(job(), "data.on_unreadable_file=skip")
    assert manifest.raw_rows == 3000 - lost
    assert [str(broken) in note for note in manifest.notes] == [True]
    assert f"warning: skipped: {broken}" in capfd.readouterr().err
    # A skipped file keeps its number, so that row ids stay what they are without the damage.
    first = pq.read_table(folder.parent / "prepared" / manifest.splits["test"][0].path)["row_id"][0].as_py()
    assert first >> 40 == 12


def test_what_is_no_file_among_the_log_files_is_named(log):
    folder, prepare = log
    (folder / "log_x.parquet").mkdir()
    with pytest.raises(UserError, match=r"log_x\.parquet: is a folder; move it away"):
        prepare(SerialJob())
    (folder / "log_x.parquet").rmdir()
    (folder / "log_x.parquet").symlink_to(folder / "nothing")
    with pytest.raises(UserError, match=r"log_x\.parquet: is a link to nothing; move it away"):
        prepare(SerialJob(), "data.on_unreadable_file=skip")


def test_no_setting_is_advised_that_would_drop_most_of_a_log(log):
    folder, prepare = log
    for path in logs(folder)[:7]:
        path.write_bytes(b"PAR1")
    with pytest.raises(
        UserError,
        match=r"\(and 6 more\); mend them or set data\.on_unreadable_file=skip, which leaves out 7 of 14 files$",
    ):
        prepare(SerialJob())
    logs(folder)[7].write_bytes(b"PAR1")
    with pytest.raises(
        UserError, match=r"\(and 7 more\); 8 of 14 files cannot be read, which is too much to leave out: mend them$"
    ):
        prepare(SerialJob())


MASK = r"mend them, or set features\.tasks\.like\.unknown=mask, which keeps the 1,\d+ rows without 'like'"


@pytest.mark.parametrize(
    ("every", "advice"),
    [
        (1, "3,000 of 3,000 rows are bad; mend them, or leave task like out: none of its labels is known$"),
        (2, rf"1,5\d\d of 3,000 rows are bad; {MASK}$"),
        (3, rf"1,0\d\d of 3,000 rows are bad; {MASK}, or set data\.on_bad_row=set_aside, which leaves them out$"),
    ],
)
@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_labels_that_are_not_known_name_the_mask_that_keeps_their_rows(log, every, advice, unknown):
    folder, prepare = log
    for path in logs(folder):
        table = pq.read_table(path)
        values = [unknown if row % every == 0 else label for row, label in enumerate(table["like"].to_pylist())]
        place = table.column_names.index("like")
        pq.write_table(table.set_column(place, "like", pa.array(values, pa.float64(), from_pandas=False)), path)
    with pytest.raises(UserError, match=f"column 'like' is {unknown}; .*{advice}"):
        prepare(SerialJob())
    if every > 1:
        manifest = prepare(SerialJob(), "features.tasks.like.unknown=mask")
        assert manifest.rows("train") + manifest.rows("test") == 3000


def test_the_mask_keeps_no_rows_that_lie_outside_of_all_splits(log):
    folder, prepare = log
    for path in logs(folder):
        table = pq.read_table(path)
        values = [None if row % 3 == 0 else label for row, label in enumerate(table["like"].to_pylist())]
        pq.write_table(table.set_column(table.column_names.index("like"), "like", pa.array(values, pa.int8())), path)
    with pytest.raises(UserError, match=r" (\d{3}) of 1,\d{3} rows are bad; mend them, .* keeps the \1 rows without"):
        prepare(SerialJob(), "data.splits.train.start=2026-01-04T00:00:00Z")


def test_a_split_without_rows_names_those_that_have_some(small_config):
    config = load_config(small_config)
    held = r"2,571 of 'train' \(2026-01-01T00.* to 2026-01-06T23.*\), 429 of 'test' \(2026-01-07T00"
    with pytest.raises(UserError, match=f"prepared: holds no rows of split 'valid', but {held}"):
        find_prepared(config, ["train", "valid"])


def test_a_folder_without_a_readable_file(log):
    folder, prepare = log
    for path in logs(folder):
        path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="none of its 14 log files"):
        prepare(SerialJob(), "data.on_unreadable_file=skip")


def test_a_file_that_lacks_a_column_is_named(log):
    folder, prepare = log
    path = logs(folder)[5]
    pq.write_table(pq.read_table(path).drop_columns("duration_s"), path)
    with pytest.raises(UserError, match=rf"{path}: column 'duration_s' is missing"):
        prepare(SerialJob())
    assert nothing_was_left(folder)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("features.features.activity.column=age_segment", "activity.*string.*needs numbers"),
        ("features.features.activity.column=row_id", "activity.*own mark"),
        (
            "features.features.hour.column=age_segment",
            "id_not_whole: column 'age_segment' is 18-23; .* are bad; mend them$",
        ),
        ("features.features.watched.column=video_id", "watched.*list of ids"),
        ("features.features.duration_bucket.column=age_segment", "boundaries need numbers"),
        ("features.features.age_segment.column=tags", "age_segment.*integers or strings"),
        ("features.tasks.finish.column=age_segment", "feature age_segment.*is the label of task finish"),
        ("features.tasks.finish.column=finnish", "no column 'finnish'; did you mean 'finish'"),
        ("features.features.tags.separator=''", "features.tags.*separator.*at least 1 character"),
        ("source.users=61", "users is 60, the config's is 61"),
        ("data.splits.test.end=2026-01-07T00:00:00.001Z", r"data\.splits\.test holds no row; .* 2026-01-01T00"),
    ],
)
def test_what_does_not_fit_is_said_instead_of_any_output(log, override, words):
    folder, prepare = log
    with pytest.raises(UserError, match=words):
        prepare(SerialJob(), override)
    assert nothing_was_left(folder)


def test_a_folder_of_someone_else_is_never_touched(log, tmp_path):
    folder, prepare = log
    (tmp_path / "prepared").mkdir()
    prepare(SerialJob())  # an empty folder is free to take
    shutil.rmtree(tmp_path / "prepared")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match="holds no data prepared by this version; delete or rename"):
        prepare(SerialJob())
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["thesis.tex"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no synthetic log"):
        prepare(SerialJob())
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "world.json").write_text("[1]")
    with pytest.raises(UserError, match=r"its world\.json is not one of a synthetic log; choose another"):
        prepare(SerialJob())
    (folder / "world.json").unlink()
    os.mkfifo(folder / "world.json")
    with pytest.raises(UserError, match=r"is no synthetic log \(.*world\.json: is no regular file"):
        prepare(SerialJob())


def test_prepared_data_is_refused_once_the_raw_log_or_a_shard_has_changed(log, tmp_path):
    folder, prepare = log
    manifest = prepare(SerialJob())
    shard = tmp_path / "prepared" / manifest.splits["test"][0].path
    good = shard.read_bytes()
    shard.write_bytes(good[:-9] + b"x" + good[-8:])
    with pytest.raises(UserError, match=f"{shard.name}: its checksum"):
        prepare(SerialJob())
    shard.write_bytes(good)
    assert prepare(SerialJob()) == manifest
    replace(logs(folder)[0], "hour", {0: 5})
    with pytest.raises(UserError, match="raw_files was"):
        prepare(SerialJob())
