"""A training step holds on a device: no tensor of the CPU beside one of the device, no wait that nobody has allowed.

One process is a rank of 16, or of 512, on the stand-in device (`stand_in`), where a mixture raises and a read of a
value is counted by its place (`census`).
"""

import json
import re

import pytest

from rankmixer_dist.config import BACKBONES
from tests.conftest import ROOT
from tests.rehearsal.allowed import (
    BY_CHOICE,
    IN_A_STEP,
    IN_AN_EXCHANGE,
    IN_SCORING,
    IN_STREAMING,
    SCORES,
    SCORES_OF_A_SHARD,
    WAITS_BY_NAME,
)
from tests.rehearsal.census import stale, unknown
from tests.rehearsal.conftest import lines_of, needs_cuda_wheels, undeclared_kernels, without_kernels
from tests.unit.test_structure import code_files, component

FILES = "kuairand_pure kuairand_moe rankmixer_moe rankmixer_1b_16gpus"
SHARDED = "quickstart kuairand_pure"
BF16 = ["dense.zero_stage=2", "dense.precision=bf16", "dense.clip_norm=1.0"]
EXPERTS = {
    "by token": [],
    "by token, zero 0, clipped": ["dense.zero_stage=0", "dense.clip_norm=1.0"],
    "by token in four pieces, bf16": ["parallel.pieces=4", *BF16],
    "plain": ["parallel.mode=plain", "parallel.pieces=1"],
}
"""How experts lie over 8 of the 16 ranks."""


def case(file, *overrides, rank=8, ranks=16, what="local", mutation=""):
    """What `step_cases` is to do as one rank of many.

    Args:
        what: "local" or "sharded" tables in the loop, or "stream": an actor of the streaming evaluation.
    """
    given = {"file": str(ROOT / "configs" / f"{file}.yaml"), "overrides": overrides, "what": what}
    return given | {"rank": rank, "ranks": ranks, "mutation": mutation}


def cases():
    """Name of a case -> the case."""
    found = {f"backbone {name}": case("quickstart", f"model.backbone={name}") for name in BACKBONES}
    found |= {f"config {name}": case(name) for name in FILES.split()}
    grid = "parallel.expert_size=8"
    found |= {f"experts {name}": case("quickstart_moe", grid, *more) for name, more in EXPERTS.items()}
    found["zero 2 bf16"] = case("quickstart", *BF16)
    found["zero 0 bf16"] = case("quickstart", "dense.zero_stage=0", "dense.precision=bf16")
    found["skips"] = case("quickstart", "train.on_non_finite=skip")
    found["adagrad"] = case("quickstart", "dense.optimizer=adagrad", "dense.clip_norm=1.0")
    found |= {f"sharded {name}": case(name, what="sharded", rank=0) for name in SHARDED.split()}
    of_512 = {"rank": 141, "ranks": 512}
    found["512 ranks, zero 1"] = case("quickstart", "dense.zero_stage=1", **of_512)
    found["512 ranks, experts"] = case("quickstart_moe", grid, "dense.clip_norm=1.0", **of_512)
    return found


CASES = cases()
MUTANTS = {
    "a read in the loss": "read",
    "a figure in a message": "shown",
    "a CPU tensor in a layer": "mixture",
    "a copy that waits": "waiting copy",
}


@pytest.fixture(scope="module")
def found(launch, small_config):
    """Name of a case -> what came of it."""
    mutants = {name: case("quickstart", mutation=mutation) for name, mutation in MUTANTS.items()}
    streams = case("quickstart", what="stream", rank=0, ranks=1) | {"file": str(small_config)}
    given = {**mutants, **CASES, "stream": streams}
    ended = launch.python("tests/rehearsal/step_cases.py", json.dumps([*given.values()]))
    return dict(zip(given, lines_of(ended), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_scoring_on_the_device(found, name):
    assert not found[name]["error"], found[name]["error"]
    assert not unknown(found[name]["step"]["places"], IN_A_STEP | BY_CHOICE.get(name, {}))
    lookup = IN_AN_EXCHANGE if CASES[name]["what"] == "sharded" else {}
    assert not unknown(found[name]["scoring"]["places"], IN_SCORING | lookup)
    assert found[name]["scoring"]["places"][SCORES] == 1, "a batch is read once"


def test_an_actor_of_the_streaming_evaluation_scores_on_the_device(found):
    assert not found["stream"]["error"], found["stream"]["error"]
    assert found["stream"]["rows"] == 1024
    places = found["stream"]["scoring"]["places"]
    assert not unknown(places, IN_STREAMING)
    assert not stale(places, IN_STREAMING), "take these lines out of allowed.py"
    assert places[SCORES_OF_A_SHARD] == 2, "two batches of 512 rows are read once each"


@pytest.mark.parametrize(("kind", "allowed"), [("step", IN_A_STEP), ("scoring", IN_SCORING)])
def test_no_allowance_outlives_its_place(found, kind, allowed):
    places = {place for name in CASES for place in found[name][kind]["places"]}
    assert not stale(places, allowed), "take these lines out of allowed.py"


@pytest.mark.parametrize("name", BY_CHOICE)
def test_no_allowance_outlives_the_choice_that_needs_it(found, name):
    assert not stale(found[name]["step"]["places"], BY_CHOICE[name]), "take these lines out of allowed.py"


@needs_cuda_wheels
def test_every_operator_has_a_kernel_for_gpus(found):
    operators = set().union(*(found[name][kind]["operators"] for name in CASES for kind in ("step", "scoring")))
    assert len(operators) > 90
    assert not without_kernels(operators)


def test_torch_declares_every_operator_for_gpus(found):
    operators = set().union(*(found[name][kind]["operators"] for name in CASES for kind in ("step", "scoring")))
    assert len(operators) > 90
    assert not undeclared_kernels(operators)
    only_on_cpus = {"aten.histogram.bin_ct", "aten._add_relu.Tensor"}
    assert undeclared_kernels({*operators, *only_on_cpus}) == sorted(only_on_cpus)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a read in the loss", "read rankmixer_dist/train/step.py:TrainStep._loss"),
        ("a figure in a message", "read rankmixer_dist/train/loop.py:_Interval.add"),
        ("a copy that waits", "upload rankmixer_dist/train/loop.py:_ReadAhead.__next__"),
    ],
)
def test_a_wait_that_somebody_adds_is_found(found, name, place):
    assert unknown(found[name]["step"]["places"], IN_A_STEP) == [place]


def test_who_waits_for_a_gpu_by_name():
    files = [file for file in code_files() if component(file) != "benchmarks"]
    found = {file for file in files if re.search(r"\bsynchronize\(", (ROOT / file).read_text())}
    assert found == WAITS_BY_NAME.keys(), "wait less, or say in allowed.py what for"


def test_a_cpu_tensor_that_somebody_adds_is_found(found):
    error = found["a CPU tensor in a layer"]["error"]
    assert "found at least two devices" in error and "twin:0" in error and "cpu" in error
