"""Every wrong input of `inputs.py` over every verb: one line with a way out, no traceback, no silence.

All of it is told before torch, deepspeed, Ray or scikit-learn are loaded.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankmixer_dist.checkpoint.about import About, DataPosition
from rankmixer_dist.config import load_config
from rankmixer_dist.identity import checksums
from tests.faults.inputs import CONFIGS, DAMAGES, OVERRIDES, PLACES

ROOT = Path(__file__).resolve().parents[2]
VERBS: dict[str, Callable[[str], list[str]]] = {
    "preprocess": lambda config: [config],
    "plan": lambda config: [config],
    "train": lambda config: [config],
    "evaluate": lambda config: [config],
    "stream_evaluate": lambda config: [config, "stream.run_wait_s=0"],
    "baseline": lambda config: [config],
    "bench": lambda config: ["--what=loader", f"--config={config}"],
}
"""How each verb that takes a config is given one. compare.py takes run directories, doctor.py nothing."""
OF_DATA = ("train", "evaluate", "stream_evaluate", "baseline", "bench")
OF_RUN = ("train", "evaluate", "stream_evaluate", "compare")


@dataclass(frozen=True)
class Case:
    """A verb with a wrong input.

    told: a word of the line; None where the input may also do no harm.
    """

    verb: str
    title: str
    arguments: list[str]
    told: str | None = None
    code: int = 2
    manner: dict[str, Any] = field(default_factory=dict)


def faults(cases: Sequence[Case], folder: Path) -> list[str]:
    """What is wrong with how the cases end; each verb's are run in turn, two verbs at a time."""
    verbs = sorted({case.verb for case in cases})
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda verb: _end(verb, [case for case in cases if case.verb == verb], folder), verbs))
    return [fault for each in ended for fault in each]


def _end(verb: str, cases: list[Case], folder: Path) -> Iterator[str]:
    jobs, results = folder / f"{verb}.jobs", folder / f"{verb}.results"
    jobs.write_text(json.dumps([{"arguments": case.arguments, **case.manner} for case in cases]))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    driver = [sys.executable, ROOT / "tests/faults/driver.py", ROOT / f"launch/{verb}.py", jobs, results]
    subprocess.run(driver, env=env, cwd=folder, stdin=subprocess.DEVNULL, check=True)
    ended = json.loads(results.read_text())
    return [fault for case, end in zip(cases, ended, strict=True) for fault in _faults(case, end)]


def _faults(case: Case, end: dict[str, Any]) -> Iterator[str]:
    lines = [line for line in end["err"].splitlines() if line.strip()]
    where = f"{case.verb}, {case.title}"
    if end["code"] is None:
        yield f"{where}: silent for {end['seconds']:.0f} s"
    elif "Traceback" in end["err"] + end["out"]:
        yield f"{where}: a traceback, {lines[-1]}"
    elif end["code"] != case.code and not (case.told is None and end["code"] == 0):
        yield f"{where}: exit code {end['code']}, {lines[-1:]}"
    elif end["code"] == 2 and (sum(line.startswith("error: ") for line in lines) != 1 or len(lines[-1]) > 900):
        yield f"{where}: not one line, {lines}"
    elif case.told is not None and case.told not in "".join(lines[-1:]):
        yield f"{where}: does not tell {case.told!r}, {lines}"
    elif end["code"] == 2 and end["loaded"]:
        yield f"{where}: told after {', '.join(end['loaded'])} had been loaded"


@pytest.fixture(scope="module")
def good(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a run (config.yaml), its prepared data and a run directory as training leaves it."""
    folder = tmp_path_factory.mktemp("good")
    config = yaml.safe_load(small_config.read_text())
    shutil.copytree(config["data"]["prepared"], folder / "prepared")
    _settle(config, folder)
    resolved = load_config(folder / "config.yaml")
    run, checkpoint = resolved.run_dir, resolved.run_dir / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (run / "predictions").mkdir()
    (run / "config.yaml").write_text(resolved.to_yaml())
    About(
        step=1, rows=128, position=DataPosition(epoch=0, row=128), updates=1, moments=(), shapes={}, world_size=1,
        config=resolved.model_dump(mode="json"), versions={},
        identity=checksums(resolved.features, resolved.model),
    ).write(checkpoint)  # fmt: skip
    figures = dict.fromkeys(("auc", "uauc", "uauc_unweighted", "logloss", "ne", "calibration"), 0.5)
    figures |= {"auc_ci95": [0.4, 0.6], "positives": 5, "users_scored": 3}
    evaluation = {"rows": 9, "split": "test", "checkpoint": "x", "tasks": {"finish": figures}}
    (run / "eval.json").write_text(json.dumps(evaluation))
    dense = {"parameters": 12, "flops_per_row_forward": 24, "flops_per_row_train": 72}
    (run / "plan.json").write_text(json.dumps({"world_size": 1, "tables": [], "bytes_per_rank": [0], "dense": dense}))
    lines = [{"step": step, "loss": 0.7, "samples_per_s": 10.0, "loss_per_task": {"finish": 0.7}} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _settle(config: dict[str, Any], folder: Path) -> None:
    """Writes the config of a run whose data and runs lie in a folder."""
    config["runs"], config["data"]["prepared"] = str(folder / "runs"), str(folder / "prepared")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, width=10_000))


def a_copy(good: Path, folder: Path) -> Path:
    """Another folder with the same, whose shards are links; returns its run directory."""
    shutil.copytree(good, folder, copy_function=os.link)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".parquet":  # to be damaged, unlike the original's
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    _settle(yaml.safe_load((folder / "config.yaml").read_text()), folder)
    config = load_config(folder / "config.yaml")
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    return config.run_dir


def some(cases: list[Case], request: pytest.FixtureRequest) -> list[Case]:
    """All cases with `--thorough`; else each input with one verb, the verbs in turn."""
    if request.config.getoption("--thorough"):
        return cases
    titles = list(dict.fromkeys(case.title for case in cases))
    verbs = list(dict.fromkeys(case.verb for case in cases))
    return [case for case in cases if verbs[titles.index(case.title) % len(verbs)] == case.verb]


def test_configs(good: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = (good / "config.yaml").read_text()
    cases = []
    for number, (title, (content, told)) in enumerate(CONFIGS.items()):
        path = tmp_path / str(number) / "config.yaml"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content(text).encode("latin-1"))
        cases += [Case(verb, title, given(str(path)), told) for verb, given in VERBS.items()]
    for title, put in PLACES.items():
        path = tmp_path / title
        path.write_text(text)
        put(path)
        cases += [Case(verb, title, given(str(path)), title) for verb, given in VERBS.items()]
    for title in ("", "/dev/zero", "no\0where", "x" * 300, "\udcff", str(good / "config.yaml" / "x")):
        cases += [Case(verb, f"path {title[:20]!r}", given(title), "") for verb, given in VERBS.items()]
    assert not (wrong := faults(some(cases, request), tmp_path)), "\n".join(wrong)


def test_overrides(good: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = str(good / "config.yaml")
    cases = [
        Case(verb, override[:40], [*given(config), override], told)
        for override, told in OVERRIDES.items()
        for verb, given in VERBS.items()
    ]
    assert not (wrong := faults(some(cases, request), tmp_path)), "\n".join(wrong)


def test_data(good: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cases = []
    for number, (title, damage) in enumerate((DAMAGES | PLACES).items()):
        a_copy(good, tmp_path / str(number))
        damage(tmp_path / str(number) / "prepared" / "manifest.json")
        config = str(tmp_path / str(number) / "config.yaml")
        cases += [Case(verb, f"manifest {title}", VERBS[verb](config), "manifest.json") for verb in OF_DATA]
    for title, told in (("missing", "launch/preprocess.py"), ("a file", "prepared"), ("a pipe", "prepared")):
        a_copy(good, tmp_path / title)
        prepared = tmp_path / title / "prepared"
        shutil.rmtree(prepared)
        if title != "missing":
            prepared.write_text("")
        if title == "a pipe":
            PLACES[title](prepared)
        config = str(tmp_path / title / "config.yaml")
        cases += [Case(verb, f"prepared {title}", VERBS[verb](config), told) for verb in OF_DATA]
    assert not (wrong := faults(some(cases, request), tmp_path)), "\n".join(wrong)


def test_run_directories(good: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cases = []
    files = {"config.yaml": OF_RUN, "metrics.jsonl": ("evaluate", "compare"), "plan.json": ("evaluate", "compare")}
    for file, verbs in (files | {"eval.json": ("compare",)}).items():
        for title, damage in (DAMAGES | PLACES).items():
            folder = tmp_path / f"{file} {title}"
            run = a_copy(good, folder)
            damage(run / file)
            # A log may be cut short; and what is no file is as none, but for the config, without which there is no run.
            harmless = (file == "metrics.jsonl" and title in ("torn", "empty")) or title in PLACES
            for verb in verbs:
                if harmless and verb in ("train", "evaluate") and not (verb == "evaluate" and file == "config.yaml"):
                    continue  # they would go on, and take a minute
                given = [str(run)] if verb == "compare" else VERBS[verb](str(folder / "config.yaml"))
                cases.append(Case(verb, folder.name, given, None if harmless else file))
    assert not (wrong := faults(some(cases, request), tmp_path)), "\n".join(wrong)


def test_places(good: Path, tmp_path: Path) -> None:
    config, run = str(good / "config.yaml"), str(load_config(good / "config.yaml").run_dir)
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_text("x")
    os.mkfifo(pipe)
    of_run = ("train", "evaluate", "stream_evaluate", "baseline")
    cases = []
    for place in (file, file / "below", pipe, tmp_path / ("x" * 300), Path("/dev/null/x")):
        cases += [Case(verb, f"runs {place.name[:9]}", [*VERBS[verb](config), f"runs={place}"], "") for verb in of_run]
        cases.append(Case("preprocess", f"prepared {place.name[:9]}", [config, f"data.prepared={place}"], ""))
        cases.append(Case("compare", f"run {place.name[:9]}", [run, str(place)], place.name))
        cases.append(Case("bench", f"out {place.name[:9]}", [*VERBS["bench"](config), f"--json={place}/out"], ""))
        followed = [*VERBS["stream_evaluate"](config), f"stream.shards={place}"]
        cases.append(Case("stream_evaluate", f"shards {place.name[:9]}", followed, ""))
        scored = ["--predictions", str(place)]
        cases.append(Case("evaluate", f"predictions {place.name[:9]}", scored, ""))
    cases += [
        Case("train", "start_from", [config, "name=other", "train.start_from.run=none"], "train.start_from.run none"),
        Case("evaluate", "no checkpoint", [config, "eval.checkpoint=step-9"], "no such checkpoint there"),
        Case("evaluate", "no split", [config, "name=other"], "no run here"),
        Case("evaluate", "nothing", [], "name what to evaluate"),
        Case("evaluate", "too much", [config, "--predictions", "x"], "not both"),
        Case("evaluate", "a stray option", [config, "--user=x"], "goes with --predictions"),
        Case("baseline", "a cross", [*VERBS["baseline"](config), "--cross=user:usr"], "--cross user:usr"),
        Case("baseline", "half a cross", [*VERBS["baseline"](config), "--cross=user"], "--cross user"),
        Case("bench", "a size", ["--what=metrics", "--size=row=3"], "did you mean 'rows'"),
        Case("bench", "no experts", ["--what=moe", f"--config={config}"], "model.rankmixer.moe.kind"),
        Case("stream_evaluate", "many ranks", [config], "WORLD_SIZE", manner={"env": {"WORLD_SIZE": "two"}}),
        Case("compare", "the same twice", [run, run], "again"),
        Case("compare", "its parent", [str(Path(run).parent)], "no config.yaml"),
    ]
    for name, title in itertools.product(
        ("lock", "metrics.jsonl", "checkpoints", "tensorboard"), ("a pipe", "a folder")
    ):
        if title == "a folder" and name in ("checkpoints", "tensorboard"):
            continue  # as it should be
        copied = a_copy(good, tmp_path / f"{name} {title}")
        if (copied / name).is_dir():
            shutil.rmtree(copied / name)
        (copied / name).write_text("")
        PLACES[title](copied / name)
        cases.append(Case("train", f"{name} {title}", [str(tmp_path / f"{name} {title}" / "config.yaml")], name))
    assert not (wrong := faults(cases, tmp_path)), "\n".join(wrong)


def test_surroundings(good: Path, tmp_path: Path) -> None:
    config, run = str(good / "config.yaml"), str(load_config(good / "config.yaml").run_dir)
    ends = {
        "gone": (0, "warning: stdout: Broken pipe"),
        "full": (1, "warning: stdout: No space left on device"),
        "closed": (0, ""),
    }
    surroundings: dict[str, dict[str, Any]] = {
        "a removed folder": {"cwd": "removed"},
        "no TMPDIR": {"env": {"TMPDIR": str(tmp_path / "none")}},
        "no HOME": {"env": {"HOME": str(tmp_path / "none")}},
    }
    cases = [
        Case("compare", f"stdout {title}", [run], told, code, {"stdout": title}) for title, (code, told) in ends.items()
    ]
    for verb, given in VERBS.items():
        arguments = [*given(config), "train.epochz=3"]
        cases += [Case(verb, f"stdout {title}", arguments, "epochs", 2, {"stdout": title}) for title in ends]
        cases += [Case(verb, title, arguments, "epochs", 2, manner) for title, manner in surroundings.items()]
    cases += [Case("compare", title, [run], "", 0, manner) for title, manner in surroundings.items()]
    assert not (wrong := faults(cases, tmp_path)), "\n".join(wrong)


def test_names_and_output_that_ascii_lacks(good: Path, tmp_path: Path) -> None:
    run = a_copy(good, tmp_path / "copy")
    told = json.loads((run / "eval.json").read_text())
    told["tasks"] = {"[bold]caf\xe9 :smile:[/]": told["tasks"]["finish"]}
    (run / "eval.json").write_text(json.dumps(told))
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "200"}
    env = os.environ | ascii_only | {"PYTHONPATH": str(ROOT)}
    compare = [sys.executable, ROOT / "launch/compare.py", run]
    shown = subprocess.run(compare, env=env, capture_output=True, text=True, check=True)
    assert "[bold]caf\\xe9 :smile:" in shown.stdout and not shown.stderr, shown.stdout
