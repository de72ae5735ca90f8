"""The configs: every file parses, mistakes are told in one helpful line, and none of it needs torch."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer_dist.config import KuaiRandSource, RunConfig, TimeRange, load_config
from rankmixer_dist.config.run import BestCheckpoint
from rankmixer_dist.config.yaml_text import SECTIONS, read_resolved
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.schema import MultiIdFeature, Schema, SequenceFeature

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMAS = sorted((ROOT / "configs" / "features").glob("*.yaml"))
QUICKSTART = ROOT / "configs" / "quickstart.yaml"

Change = Callable[[dict[str, Any]], object]


def write_run(folder: Path, change: Change = lambda run: None) -> Path:
    """A small valid run after `change`, as a file."""
    run: dict[str, Any] = {
        "name": "small",
        "features": {
            "tables": {"user": {"rows": 64, "dim": 8}, "video": {"rows": 64, "dim": 8}, "hour": {"rows": 8, "dim": 4}},
            "groups": {"who": 1, "what": 1},
            "features": {
                "user": {"kind": "id", "column": "user_id", "table": "user", "group": "who"},
                "watched": {"kind": "sequence", "table": "video", "query": "video", "group": "who"},
                "video": {"table": "video", "kind": "id", "group": "what"},
                "hour": {"kind": "id", "table": "hour", "boundaries": [1, 2], "group": "what"},
                "length": {"kind": "numeric", "group": "what"},
            },
            "tasks": {"like": {}},
        },
        "source": {"kind": "synthetic", "path": "raw"},
        "data": {
            "prepared": "prepared",
            "splits": {
                "train": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"},
                "test": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-03T00:00:00Z"},
            },
        },
    }
    change(run)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path


def message(path: Path, *overrides: str) -> str:
    """What the user is told about a config that does not load: one line, which names the file or the override."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def set_to(*keys: str, value: Any) -> Change:
    """A change that sets the value at a path of keys."""

    def change(run: dict[str, Any]) -> None:
        for key in keys[:-1]:
            run = run[key]
        run[keys[-1]] = value

    return change


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml())
    assert load_config(resolved) == config


def test_a_resolved_config_that_was_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    text, path = load_config(CONFIGS[0]).to_yaml(), tmp_path / "config.yaml"
    path.write_text(text)
    assert [*read_resolved(path)][-len(SECTIONS) :] == SECTIONS
    for end in range(0, text.index(f"{SECTIONS[-1]}:"), 7):
        path.write_text(text[:end])
        with pytest.raises(UserError, match="config.yaml"):
            read_resolved(path)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_every_feature_file_is_a_schema_that_some_config_uses(path: Path) -> None:
    schema = Schema.model_validate(yaml.safe_load(path.read_text()))
    assert any(load_config(config).features == schema for config in CONFIGS)


def test_there_are_configs_and_feature_files() -> None:
    assert CONFIGS and SCHEMAS


def test_the_config_needs_no_torch() -> None:
    code = f"""
import sys
from rankmixer_dist.config import load_config
load_config({str(QUICKSTART)!r})
heavy = {{"torch", "torchrec", "deepspeed", "ray", "pandas", "numpy"}} & sys.modules.keys()
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_config_is_immutable() -> None:
    config = load_config(QUICKSTART)
    with pytest.raises(ValueError, match="frozen"):
        config.model.token_dim = 128  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keys", "known"),
    [
        (("modle",), "model"),
        (("qqqq",), None),
        (("data", "shard_row"), "shard_rows"),
        (("data", "splits", "train", "strat"), "start"),
        (("loader", "batchsize"), "batch_size"),
        (("model", "tokendim"), "token_dim"),
        (("sparse", "optimiser"), "optimizer"),
        (("sparse", "schedule", "warmup"), "warmup_steps"),
        (("dense", "zero"), "zero_stage"),
        (("dense", "schedule", "dacay"), "decay"),
        (("train", "epoch"), "epochs"),
        (("eval", "splits"), "split"),
        (("source", "user"), "users"),
        (("features", "task"), "tasks"),
        (("features", "tables", "user", "row"), "rows"),
        (("features", "features", "user", "tabel"), "table"),
        (("features", "features", "watched", "max_len"), "max_length"),
        (("features", "features", "length", "transfrom"), "transform"),
        (("features", "tasks", "like", "wieght"), "weight"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_an_unknown_key_names_the_nearest_known_one(keys: tuple[str, ...], known: str | None, tmp_path: Path) -> None:
    def change(run: dict[str, Any]) -> None:
        for key in keys[:-1]:
            run = run.setdefault(key, {})
        run[keys[-1]] = 1

    expected = f"unknown key {'.'.join(keys)}" + (f"; did you mean {known!r}?" if known else "")
    assert message(write_run(tmp_path, change)) == f"{tmp_path / 'run.yaml'}: {expected}"


def test_an_unknown_key_is_told_before_the_required_one_that_it_was_meant_to_be(tmp_path: Path) -> None:
    def change(run: dict[str, Any]) -> None:
        run["data"]["preparde"] = run["data"].pop("prepared")

    told = message(write_run(tmp_path, change))
    assert "unknown key data.preparde; did you mean 'prepared'? (and 1 more)" in told


def test_a_source_is_only_offered_the_keys_of_its_own_kind(tmp_path: Path) -> None:
    path = write_run(tmp_path, set_to("source", value={"kind": "kuairand", "path": "x", "user": 3}))
    assert message(path).endswith("unknown key source.user")


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("zzz", ["alpha", "beta"]) == ""
    assert nearest("alpa", ["alpha", "beta"]) == "; did you mean 'alpha'?"


def test_overrides_replace_values_and_reach_into_the_feature_file() -> None:
    config = load_config(
        QUICKSTART,
        ["name=other", "train.epochs=3", "dense.clip_norm=1.5", "source.rows=10", "features.tables.user.rows=100"],
    )
    assert (config.name, config.train.epochs, config.dense.clip_norm) == ("other", 3, 1.5)
    assert config.run_dir == Path("runs/other")
    assert config.features.tables["user"].rows == 100
    assert config.features.tables["video"] == load_config(QUICKSTART).features.tables["video"]


def test_an_override_of_the_feature_file_comes_first_wherever_it_stands(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    schema = yaml.safe_load(path.read_text())["features"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(schema | {"tasks": {"skip": {}}}))
    path.write_text(path.read_text().replace("name: small", "name: small\nmodel: {token_dim: 32}"))
    config = load_config(path, ["features.tables.user.rows=99", "features=other.yaml"])
    assert list(config.features.tasks) == ["skip"]
    assert config.features.tables["user"].rows == 99


@pytest.mark.parametrize("override", ["train.epochs", "=3"])
def test_an_override_without_a_key_or_value_is_refused(override: str) -> None:
    assert message(QUICKSTART, override) == f"override {override!r} is not of the form section.key=value"


def test_an_override_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert "mappings merge" in message(path, "features.tasks={}")
    assert load_config(path, ["sparse.sharding={}"]).sparse.sharding == {}


def test_an_override_with_a_typo_names_the_nearest_key() -> None:
    assert message(QUICKSTART, "train.epoch=3").endswith("unknown key train.epoch; did you mean 'epochs'?")


def test_an_environment_variable_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUAIRAND_PURE", "elsewhere")
    source = load_config(ROOT / "configs" / "kuairand_pure.yaml").source
    assert isinstance(source, KuaiRandSource)
    assert source.path == Path("elsewhere")


def test_an_environment_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKMIXER_NOWHERE", raising=False)
    path = write_run(tmp_path, set_to("source", "path", value="${oc.env:RANKMIXER_NOWHERE}"))
    assert "RANKMIXER_NOWHERE" in message(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not valid YAML"),
        ("- name\n- seed\n", "not a mapping of keys to values"),
        ("name: x\n", "features: Field required (and 2 more)"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert expected in message(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert message(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such file"
    assert "absent.yaml: no such file" in message(write_run(tmp_path, set_to("features", value="absent.yaml")))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_to("name", value="a/b"), "name: String should match pattern"),
        (set_to("loader", value={"batch_size": 0}), "loader.batch_size: Input should be greater than 0 (got 0)"),
        (set_to("dense", value={"zero_stage": 3}), "dense.zero_stage: Input should be 0, 1 or 2 (got 3)"),
        (set_to("dense", value={"precision": "fp16"}), "dense.precision: Input should be 'fp32' or 'bf16'"),
        (set_to("data", "splits", value={}), "data: splits is empty; declare at least one time range"),
        (set_to("data", "shard_rows", value=1500), "data: shard_rows 1500 is not a multiple of row_group_rows 1024"),
        (
            set_to("data", "splits", "test", "start", value="2026-01-01T12:00:00Z"),
            "data: splits 'train' and 'test' overlap in time",
        ),
        (set_to("data", "splits", "test", "end", value="2026-01-02T00:00:00Z"), "is not before end"),
        (set_to("data", "splits", "test", "end", value="2026-01-03T00:00:00"), "should have timezone info"),
        (set_to("model", value={"token_dim": 33}), "model.token_dim 33 is not divisible by the 2 tokens"),
        (set_to("train", value={"split": "tarin"}), "train.split 'tarin' is not one of data.splits: train, test"),
        (set_to("train", value={"split": []}), "train: split is empty"),
        (set_to("train", value={"split": ["train", "tset"]}), "train.split 'tset' is not one of data.splits"),
        (
            set_to("train", value={"split": ["test", "train"]}),
            "train.split: 'train' does not come after 'test' in time; list each once, in order",
        ),
        (set_to("train", value={"split": ["train", "train"]}), "'train' does not come after 'train' in time"),
        (
            set_to("train", value={"split": ["train", "test"], "epochs": 2}),
            "train: epochs 2 with several splits: a second pass would train an earlier split on what comes after it",
        ),
        (set_to("eval", value={"split": "late"}), "eval.split 'late' is not one of data.splits: train, test"),
        (
            set_to("sparse", value={"sharding": {"vidoe": "row_wise"}}),
            "sparse.sharding names 'vidoe', which is not a table; did you mean 'video'?",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_told(change: Change, expected: str, tmp_path: Path) -> None:
    assert expected in message(write_run(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_to("tables", "user", "rows", value=1), "tables.user: a table needs at least 2 rows"),
        (set_to("tables", "user", "dim", value=6), "tables.user: dim 6 is not a multiple of 4"),
        (
            set_to("tables", "hour", value={"rows": 32, "dim": 8, "ids": "identity", "salt": "h"}),
            "salt goes with ids: hash",
        ),
        (set_to("features", "hour", "boundaries", value=[2, 1]), "boundaries must ascend strictly"),
        (set_to("features", "hour", "boundaries", value=[1, 1]), "boundaries must ascend strictly"),
        (set_to("tables", "hour", "rows", value=3), "feature hour: 2 boundaries need a table of 4 rows"),
        (set_to("features", "watched", "query", value=None), "target_attention needs `query`"),
        (set_to("features", "watched", "pooling", value="mean"), "mean takes none"),
        (set_to("features", "watched", "query", value="length"), "query 'length' is not an id feature"),
        (set_to("features", "watched", "query", value="hour"), "its table and its query's table differ in dim"),
        (set_to("features", "video", "group", value="which"), "feature video: group 'which' is not declared"),
        (set_to("features", "hour", "table", value="hours"), "feature hour: table 'hours' is not declared"),
        (set_to("features", "video", "table", value="vid"), "feature video: table 'vid' is not declared"),
        (
            set_to("features", "label_like", value={"kind": "numeric", "group": "who"}),
            "feature label_like: the name is taken by prepared data",
        ),
        (
            set_to("features", "user_id", value={"kind": "numeric", "group": "who"}),
            "feature user_id: the name is taken by prepared data",
        ),
        (set_to("groups", "empty", value=1), "group 'empty' has no feature"),
        (set_to("tables", "spare", value={"rows": 8, "dim": 4}), "table 'spare' is used by no feature"),
        (set_to("tasks", value={}), "declare at least one task"),
        (set_to("tasks", "like", value={"weight": 0}), "tasks.like.weight: Input should be greater than 0 (got 0)"),
        (set_to("features", "length", "kind", value="number"), "features.length"),
    ],
)
def test_a_schema_that_contradicts_itself_is_told(change: Change, expected: str, tmp_path: Path) -> None:
    told = message(write_run(tmp_path, lambda run: change(run["features"])))
    assert expected in told
    assert told.count("\n") == 0


def test_the_suggested_width_is_one_that_fits(tmp_path: Path) -> None:
    path = write_run(tmp_path, set_to("features", "groups", value={"who": 3, "what": 4}))
    assert message(path, "model.token_dim=64").endswith("try 63")
    assert load_config(path, ["model.token_dim=63"]).features.num_tokens == 7


def test_a_time_range_is_in_milliseconds() -> None:
    day = TimeRange.model_validate({"start": "1970-01-02T00:00:00Z", "end": "1970-01-03T08:00:00+08:00"})
    assert day.to_ms() == (86_400_000, 2 * 86_400_000)


def test_a_schema_answers_for_columns_and_kinds(tmp_path: Path) -> None:
    schema: Schema = load_config(write_run(tmp_path)).features
    assert schema.raw_columns()["user"] == "user_id"
    assert schema.raw_columns()["hour"] == "hour"
    assert schema.label_columns() == {"like": "like"}
    assert list(schema.of_kind(SequenceFeature)) == ["watched"]
    assert not schema.of_kind(MultiIdFeature)


def test_the_default_values_are_themselves_valid(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path))
    assert RunConfig.model_validate(config.model_dump()) == config


def test_a_thousand_features_with_tables_are_read(tmp_path: Path) -> None:
    def change(run: dict[str, Any]) -> None:
        for number in range(1000):
            run["features"]["tables"][f"t{number}"] = {"rows": 64, "dim": 8}
            run["features"]["features"][f"f{number}"] = {"kind": "id", "table": f"t{number}", "group": "who"}

    assert len(load_config(write_run(tmp_path, change), ["seed=2"]).features.features) == 1005


def test_anchors_merges_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    path.write_text(
        "\ufeff" + path.read_text() + "loader: &shared {batch_size: 64}\neval: {<<: *shared, split: test}\n"
    )
    config = load_config(path)
    assert (config.loader.batch_size, config.eval.batch_size, config.eval.split) == (64, 64, "test")


def test_a_run_can_extend_another(tmp_path: Path) -> None:
    base = write_run(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "more.yaml").write_text("extends: ../run.yaml\nname: more\nloader: {batch_size: 64}\n")
    (folder / "most.yaml").write_text("extends: more.yaml\nname: most\nloader: {prefetch: 2}\n")
    most, small = load_config(folder / "most.yaml", ["seed=5"]), load_config(base)
    assert (most.name, most.seed, most.loader.batch_size, most.loader.prefetch) == ("most", 5, 64, 2)
    assert most.features == small.features
    assert most.data == small.data


def test_features_can_extend_a_file(tmp_path: Path) -> None:
    write_run(tmp_path)
    features = yaml.safe_load((tmp_path / "run.yaml").read_text())["features"]
    (tmp_path / "features.yaml").write_text(yaml.safe_dump(features))
    changed = {"extends": "features.yaml", "groups": {"who": 3}, "tables": {"hour": {"dim": 8}}}
    path = write_run(tmp_path, lambda run: run.update(features=changed))
    schema = load_config(path, ["features.groups.what=5"]).features
    assert schema.groups == {"who": 3, "what": 5}
    assert schema.tables["hour"].dim == 8
    assert schema.tables["hour"].rows == 8


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "b.yaml: extends a.yaml, which extends it" in message(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: none.yaml\n")
    assert "none.yaml: no such file" in message(tmp_path / "c.yaml")


def test_a_backbone_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    text = message(write_run(tmp_path), "model.backbone=wukon")
    assert "model.backbone" in text
    assert "did you mean 'wukong'?" in text
    assert "unknown key model.wukong.num_layer; did you mean 'num_layers'?" in message(
        write_run(tmp_path), "model.wukong.num_layer=3"
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("moe.active_ratio=0", "model.rankmixer.moe.active_ratio: Input should be greater than 0 (got 0)"),
        ("moe.active_ratio=1.5", "model.rankmixer.moe.active_ratio: Input should be less than or equal to 1 (got 1.5)"),
        ("moe.kind=dtsy", "model.rankmixer.moe: "),
        ("moe.num_expert=4", "unknown key model.rankmixer.moe.num_expert; did you mean 'num_experts'?"),
        ("moe.top_k=4", "unknown key model.rankmixer.moe.top_k"),
    ],
)
def test_experts_that_make_no_sense_are_refused(tmp_path: Path, override: str, told: str) -> None:
    text = message(write_run(tmp_path), "model.rankmixer.moe.kind=dtsi", f"model.rankmixer.{override}")
    assert told in text
    assert "\n" not in text


def test_zero_3_is_refused_with_experts_and_without(tmp_path: Path) -> None:
    told = "dense.zero_stage: Input should be 0, 1 or 2 (got 3)"
    assert told in message(write_run(tmp_path), "dense.zero_stage=3")
    assert told in message(write_run(tmp_path), "dense.zero_stage=3", "model.rankmixer.moe.kind=dtsi")


def test_tokens_of_groups_are_not_chosen_twice(tmp_path: Path) -> None:
    assert "a group's tokens are in `groups`" in message(write_run(tmp_path), "model.tokenizer.num_tokens=4")


@pytest.mark.parametrize(("metric", "better", "worse"), [("auc", 0.8, 0.7), ("logloss", 0.3, 0.4)])
def test_the_better_figure_wins_and_none_never_does(metric, better, worse):
    best = BestCheckpoint(split="test", task="like", metric=metric)
    better, worse = ({f"like.{metric}": value, f"like.ne{metric}": 0.0} for value in (better, worse))
    assert best.is_better(better, worse)
    assert not best.is_better(worse, better)
    assert not best.is_better(better, better)
    assert best.is_better(worse, {})
    assert not best.is_better({}, worse)
    assert not best.is_better({}, {})


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize(
    "key",
    ["dense.lr", "dense.clip_norm", "sparse.eps", "train.stall_timeout_s", "features.tasks.like.weight",
     "features.features.duration_bucket.boundaries"],
)  # fmt: skip
def test_numbers_are_finite(key, value):
    value = f"[7,{value}]" if key.endswith("boundaries") else value
    assert re.search(rf"{re.escape(key)}\S*: \S+ is not finite; set a number", message(QUICKSTART, f"{key}={value}"))
