"""What a run's weights mean is compared part by part: keys in another order make the same model, all else is told."""

import json
import random
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data_pipeline.manifest import load_manifest
from data_pipeline.preprocess import preprocess
from data_pipeline.reading import data_seen, open_prepared, open_split
from rankmixer_dist import identity
from rankmixer_dist.checkpoint.about import read_about
from rankmixer_dist.checkpoint.folder import checkpoints
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import process_group
from rankmixer_dist.schema import SCORE_PREFIX
from rankmixer_dist.train.evaluate import evaluate
from rankmixer_dist.train.run_dir import in_runs_order
from rankmixer_dist.verbs import train

PLAIN = {"engine": "plain", "lr": 0.01}
STILL = {"train.max_steps": 1, "dense.lr": 1e-12, "sparse.lr": 1e-12}
MAPPINGS = ("tables", "groups", "features", "tasks")


class Runs:
    """Trains and evaluates in this process, from YAML files that lie in a folder."""

    def __init__(self, folder, base, topology):
        self.folder, self.topology = folder, topology
        self.base = yaml.safe_load(base.read_text())
        self.base["features"] = load_config(base).features.model_dump(mode="json", exclude_unset=True)
        self.base |= {"runs": str(folder / "runs"), "dense": PLAIN}
        self.base["sparse"] = {"lr": 0.5, "placement": "local"}
        self.base["train"] = {"epochs": 1, "log_every": 1}

    def config(self, name="one", *, features=None, **changes):
        """The base config with keys changed, dots written as in overrides, loaded from a file as a user's is."""
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.base | {"features": features or self.base["features"]}, sort_keys=False))
        return load_config(path, [f"name={name}", *(f"{key}={json.dumps(value)}" for key, value in changes.items())])

    def train(self, config):
        """As launch/train.py does on one rank."""
        train.run_on(config, self.topology, train.check(config))

    def scores(self, config):
        """Task -> scores of `eval.split` in the order of rows, as launch/evaluate.py makes them."""
        config = in_runs_order(config)
        manifest = open_prepared(config, [config.eval.split], rank=0, world_size=1)
        rows = open_split(
            config, manifest, config.eval.split, rank=0, world_size=1, batch_size=config.eval.batch_size,
            training=False, pin_memory=False,
        )  # fmt: skip
        evaluate(config, self.topology, rows)
        table = pq.read_table(config.run_dir / "predictions").sort_by("row_id")
        return {task: table[SCORE_PREFIX + task].to_numpy() for task in config.features.tasks}

    def losses(self, name):
        lines = (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def one_rank():
    with process_group() as topology:
        yield topology


@pytest.fixture(scope="module")
def runs(small_config, tmp_path_factory, one_rank):
    """A trained run `one` of 15 steps."""
    found = Runs(tmp_path_factory.mktemp("identity"), small_config, one_rank)
    found.train(found.config())
    return found


@pytest.fixture(scope="module")
def expected(runs):
    return runs.scores(runs.config())


def shuffled(features, seed, mappings=MAPPINGS):
    """The same features, the keys of some mappings in a random order."""
    draw = random.Random(seed)
    turned = dict(features)
    for key in mappings:
        turned[key] = dict(draw.sample([*features[key].items()], len(features[key])))
    return dict(draw.sample([*turned.items()], len(turned)))


def renamed(features, rename):
    """The features with every name in `rename` replaced wherever it stands; they read the same raw columns."""
    found = {key: {} for key in MAPPINGS}
    for name, table in features["tables"].items():
        found["tables"][rename.get(name, name)] = table
    for name, tokens in features["groups"].items():
        found["groups"][rename.get(name, name)] = tokens
    for name, feature in features["features"].items():
        feature = {"column": name} | feature
        feature |= {
            key: rename.get(feature[key], feature[key]) for key in ("table", "group", "query") if key in feature
        }
        found["features"][rename.get(name, name)] = feature
    for name, task in features["tasks"].items():
        found["tasks"][rename.get(name, name)] = {"column": name} | task
    return found


def same(found, expected, rename=None):
    for task, scores in expected.items():
        np.testing.assert_array_equal(found[(rename or {}).get(task, task)], scores)
    return True


def differs(found, expected):
    return max(np.abs(found[task] - expected[task]).max() for task in expected)


def told(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_keys_in_any_order_give_the_same_scores(runs, expected, seed):
    features = shuffled(runs.base["features"], seed)
    config = runs.config(features=features)
    assert json.dumps(config.model_dump(mode="json")) != json.dumps(runs.config().model_dump(mode="json"))
    assert same(runs.scores(config), expected)
    assert preprocess(config, progress=False) == load_manifest(config.data.prepared)


def test_keys_in_another_order_train_the_same_run(runs):
    runs.train(runs.config("whole", **{"train.max_steps": 8}))
    runs.train(runs.config("stopped", **{"train.max_steps": 4}))
    runs.train(runs.config("stopped", features=shuffled(runs.base["features"], 7), **{"train.max_steps": 8}))
    assert runs.losses("stopped") == runs.losses("whole")


def test_a_checkpoint_without_the_order_of_its_keys_is_refused(runs, one_rank):
    """Nothing puts the keys in order where a config is handed over as it is."""
    config = runs.config(features=shuffled(runs.base["features"], 1, ("tasks",)))
    message = told(evaluate, config, one_rank, None)
    assert re.search(
        r"saved from another model: the order of tasks was another \(\w+ stood where \w+ stands\)", message
    )


RENAMED = {
    "table": {"video": "clip", "tag": "word"},
    "feature": {"video_id": "shown", "activity": "busy", "watched": "seen", "user": "who"},
    "group": {"video": "clip_side", "context": "around"},
    "task": {"finish": "done", "like": "liked"},
}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_renamed_and_put_in_another_order_scores_the_same_or_is_told(runs, expected, seed):
    """Each seed renames another subset; the prepared data is that of the new names."""
    draw = random.Random(seed)
    rename = {}
    for kind, names in RENAMED.items():
        if seed == 3 or kind == [*RENAMED][seed] or draw.random() < 0.4:
            rename |= {old: new for old, new in names.items() if seed == 3 or draw.random() < 0.8}
    features = renamed(runs.base["features"], rename)
    features = shuffled(features, seed)
    back = {new: old for old, new in rename.items()}
    new = {"data.prepared": str(runs.folder / f"prepared{seed}")}
    message = told(runs.train, runs.config(features=features, **new))
    assert "already holds another config: features" in message
    start = {"train.start_from": {"run": str(runs.folder / "runs/one"), "rename": back}}
    config = runs.config(f"renamed{seed}", features=features, **new, **STILL, **start)
    assert all(config.features.salt(rename[name]) == name for name in rename if rename[name] in config.features.tables)
    preprocess(config, progress=False)
    runs.train(config)
    began = json.loads((config.run_dir / "start.json").read_text())
    assert (began["fresh_tables"], began["fresh_dense"], began["partly"], began["differs"]) == ({}, [], [], [])
    found = runs.scores(config)
    # Adam's first step is as long as its rate, 1e-12: fp32 does not see it, but for weights next to 0.
    assert differs({back.get(task, task): each for task, each in found.items()}, expected) < 1e-7


def test_a_table_whose_ids_lie_in_other_rows_starts_afresh(runs):
    features = renamed(runs.base["features"], {"video": "clip", "video_id": "video_id"})
    features["tables"]["clip"] = features["tables"]["clip"] | {"salt": "clip"}
    start = {"train.start_from": {"run": str(runs.folder / "runs/one"), "rename": {"clip": "video"}}}
    config = runs.config("salted", features=features, **STILL, **start)
    runs.train(config)
    fresh = json.loads((config.run_dir / "start.json").read_text())["fresh_tables"]
    assert fresh == {"clip": "salt was 'video' and is 'clip': set features.tables.clip.salt: video"}


def test_tables_of_another_size_are_trained_on_the_same_prepared_data(runs):
    features = json.loads(json.dumps(runs.base["features"]))
    features["tables"]["video"] |= {"rows": 40, "dim": 8, "salt": "film"}
    features["tables"]["hour"]["rows"] = 25
    start = {"train.start_from.run": str(runs.folder / "runs/one")}
    base, config = runs.config(), runs.config("resized", features=features, **start, **{"train.max_steps": 2})
    manifest = load_manifest(base.data.prepared)
    assert preprocess(config, progress=False) == manifest
    assert data_seen(config, manifest) == data_seen(base, manifest)
    runs.train(config)
    fresh = json.loads((config.run_dir / "start.json").read_text())["fresh_tables"]
    assert fresh == {"video": "rows was 16384 and is 40", "hour": "rows was 32 and is 25"}
    # A run that goes on has the tables that it began with.
    assert "already holds another config: features" in told(runs.train, runs.config("resized", **start))
    features["tables"]["hour"]["rows"] = 24
    message = told(runs.train, runs.config("too_small", features=features))
    assert (
        "table 'hour' has 24 rows, but feature 'hour' holds id 23, which needs 25: set features.tables.hour" in message
    )


def test_other_boundaries_need_other_prepared_data(runs):
    features = json.loads(json.dumps(runs.base["features"]))
    features["features"]["duration_bucket"]["boundaries"][0] = 8
    message = told(runs.train, runs.config("cut", features=features))
    assert "prepared for another schema: features.duration_bucket.boundaries was [7.0, " in message


@pytest.fixture
def other_statistics(runs, tmp_path):
    """The prepared data of `one` with other statistics in its manifest."""
    folder = tmp_path / "prepared"
    shutil.copytree(runs.config().data.prepared, folder)
    manifest = load_manifest(folder)
    numerics = {n: s.model_copy(update={"mean": s.mean + 1, "std": s.std * 3}) for n, s in manifest.numerics.items()}
    manifest.model_copy(update={"numerics": numerics}).write(folder)
    return {"data.prepared": str(folder)}


def test_scores_do_not_depend_on_the_statistics_of_the_data_that_is_scored(runs, expected, other_statistics):
    assert same(runs.scores(runs.config(**other_statistics)), expected)


def test_a_run_that_goes_on_keeps_its_statistics(runs, other_statistics):
    runs.train(runs.config("kept", **{"train.max_steps": 8}))
    runs.train(runs.config("moved", **{"train.max_steps": 4}))
    config = runs.config("moved", **other_statistics, **{"train.max_steps": 8, "source.path": "/nowhere"})
    runs.train(config)
    assert runs.losses("moved") == runs.losses("kept")
    first, last = (read_about(path).data for path in checkpoints(config.run_dir))
    assert first == last


def test_a_position_in_other_rows_is_refused_with_a_way_out(runs, tmp_path):
    runs.train(runs.config("stream", **{"train.max_steps": 4}))
    log = {"source.seed": 5, "source.path": str(tmp_path / "raw"), "data.prepared": str(tmp_path / "prepared")}
    other = runs.config(**log)
    preprocess(other, progress=False)
    message = told(runs.train, runs.config("stream", **{"data.prepared": str(tmp_path / "prepared")}))
    assert "stands in another stream of rows than" in message
    assert "choose another `name` and set train.start_from.run=" in message
    copied = runs.config("copied", seed=3)
    shutil.copytree(runs.config("stream").run_dir / "checkpoints", copied.run_dir / "checkpoints")
    assert "seed was 1 and is 3" in told(runs.train, copied)


def test_the_same_rows_in_other_columns_are_the_same_stream(runs, tmp_path):
    runs.train(runs.config("columns", **{"train.max_steps": 4}))
    turned = {"features": shuffled(runs.base["features"], 3), "data.prepared": str(tmp_path / "prepared")}
    preprocess(runs.config("other", **turned), progress=False)
    runs.train(runs.config("columns", **turned, **{"train.max_steps": 8}))
    runs.train(runs.config("columns_whole", **{"train.max_steps": 8}))
    assert runs.losses("columns") == runs.losses("columns_whole")


def test_a_run_may_be_moved_and_renamed(runs, expected):
    shutil.copytree(runs.folder / "runs/one", runs.folder / "elsewhere/two")
    config = runs.config("two", runs=str(runs.folder / "elsewhere"))
    assert same(runs.scores(config), expected)


def test_a_checkpoint_of_another_model_is_refused_by_the_part_that_differs(runs, one_rank):
    def refused(change):
        features = json.loads(json.dumps(runs.base["features"]))
        changes = change(features) or {}
        config = runs.config("stranger", features=features, **changes)
        shutil.rmtree(config.run_dir, ignore_errors=True)
        shutil.copytree(runs.folder / "runs/one", config.run_dir)
        (config.run_dir / "config.yaml").write_text(config.to_yaml())
        return told(evaluate, in_runs_order(config), one_rank, None).partition("saved from another model: ")[2]

    def swap(features):
        both = features["features"]
        both["video_id"]["column"], both["author_id"]["column"] = "author_id", "video_id"

    cases = [
        (lambda f: f["features"]["watched"].update(max_length=10), "feature watched: max_length was 20 and is 10"),
        (
            lambda f: f["features"]["video_age"].update(transform="none"),
            "feature video_age: transform was 'log1p' and is",
        ),
        (
            lambda f: f["features"]["duration_bucket"]["boundaries"].__setitem__(0, 8),
            "feature duration_bucket: boundaries",
        ),
        (swap, "feature video_id: column was 'video_id' and is 'author_id'"),
        (lambda f: f["tables"]["video"].update(rows=99), "table video: rows was 16384 and is 99"),
        (lambda f: f["tables"]["video"].update(salt="film"), "table video: salt was 'video' and is 'film'"),
        (lambda f: f["tasks"]["like"].update(column="skip"), "task like: column was 'like' and is 'skip'"),
        (lambda f: {"model.rankmixer.norm": "pre"}, "model: rankmixer.norm was 'post' and is 'pre'"),
    ]
    for change, expected in cases:
        assert expected in refused(change)


def test_ids_that_another_program_hashes_otherwise_are_refused(runs, monkeypatch):
    monkeypatch.setattr(identity, "ID_HASH", identity.ID_HASH + 1)
    for name, start in (("one", {}), ("hashed", {"train.start_from.run": str(runs.folder / "runs/one")})):
        message = told(runs.train, runs.config(name, **start))
        assert "written by a program to which table author meant something else" in message


def test_a_checkpoint_of_an_older_format_is_told(runs, expected, tmp_path):
    folder = shutil.copytree(checkpoints(runs.config().run_dir)[-1], tmp_path / "step-00000001")
    read_about(folder).model_copy(update={"format_version": 1}).write(folder)
    assert "format version 1, this program reads 2; it does not say what its weights mean" in told(read_about, folder)


def test_a_run_that_is_made_longer_keeps_its_rates(runs, capsys):
    schedule = {"dense.schedule.decay": "cosine"}
    runs.train(runs.config("longer", **schedule, **{"train.max_steps": 4}))
    capsys.readouterr()
    runs.train(runs.config("longer", **schedule, **{"train.max_steps": 6}))
    said = capsys.readouterr().out
    assert "is 6 steps now and was 4 when it began: the learning rates keep to 4 steps" in said
    lines = [json.loads(line) for line in (runs.folder / "runs/longer/metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    assert rates[4:] == rates[3:4] * 2 == [pytest.approx(0.001)] * 2
    runs.train(runs.config("steady", **{"train.max_steps": 2}))
    capsys.readouterr()
    runs.train(runs.config("steady", **{"train.max_steps": 3}))
    assert "learning rates" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "tokenizer", [{}, {"model.tokenizer.hidden_ratio": 0.5, "model.tokenizer.global_token": False}]
)
def test_tasks_features_and_groups_find_their_weights_wherever_they_stand(runs, tokenizer):
    """A new feature says nothing yet, and a new task is nobody else's: the old tasks score as before."""
    name = f"found{len(tokenizer)}"
    runs.train(runs.config(name, **tokenizer, **{"train.max_steps": 6}))
    expected = runs.scores(runs.config(name, **tokenizer, **{"train.max_steps": 6}))
    features = json.loads(json.dumps(runs.base["features"]))
    features["tables"]["again"] = {"rows": 32, "dim": 8, "ids": "identity"}
    again = {"kind": "id", "column": "hour", "table": "again", "group": "video"}
    features["features"] = {"again": again, **shuffled(features, 1)["features"]}
    features["groups"] = shuffled(features, 2)["groups"]
    features["tasks"] = {"liked_again": {"column": "like"}, "like": {}, "finish": {}}
    new = {"data.prepared": str(runs.folder / "prepared_again"), "sparse.init_scale": 1e-12}
    start = {"train.start_from.run": str(runs.config(name).run_dir)}
    config = runs.config(f"{name}_again", features=features, **tokenizer, **new, **start, **STILL)
    preprocess(config, progress=False)
    runs.train(config)
    began = json.loads((config.run_dir / "start.json").read_text())
    assert began["fresh_tables"] == {"again": "not there"}
    assert began["fresh_dense"] == []
    assert {name.partition(".")[0] for name in began["partly"]} == {"heads", "tokenizer"}
    found = runs.scores(config)
    assert differs(found, {task: expected[task] for task in ("like", "finish")}) < 1e-6
    assert np.abs(found["liked_again"] - expected["like"]).max() > 1e-2


@pytest.mark.thorough
def test_a_stream_is_scored_by_the_order_that_the_run_has(runs, expected, launch):
    features = shuffled(runs.base["features"], 5)
    start = {"stream.start": "2026-01-07T00:00:00Z", "stream.actors": 0, "stream.stop_after_idle_s": 0.5}
    config = runs.config(features=features, **start)
    path = runs.folder / "stream.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    ended = launch.forked("launch/stream_evaluate.py", str(path))
    assert ended.returncode == 0, ended.stderr[-2000:]
    files = sorted((config.run_dir / "stream" / "scores").glob("*/*.parquet"))
    table = pq.read_table(files[0].parent).sort_by("row_id")
    assert same({task: table[SCORE_PREFIX + task].to_numpy() for task in expected}, expected)
