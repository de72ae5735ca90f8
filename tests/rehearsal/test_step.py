"""A training step holds on a device: no tensor of the CPU beside one of the device, no wait that nobody has allowed.

One process is a rank of 16 on the stand-in device (`stand_in`), where a mixture raises and a read of a
value is counted by its place (`census`).
"""

import json

import pytest

from tests.conftest import ROOT
from tests.rehearsal.allowed import BY_CHOICE, IN_A_STEP, IN_SCORING
from tests.rehearsal.census import stale, unknown
from tests.rehearsal.conftest import lines_of, needs_cuda_wheels, without_kernels

BACKBONES = "rankmixer autoint dcn_v2 dhen dlrm_mlp hiformer hhft rdcn tokenmixer_large wukong moe hetero_attention"
FILES = "kuairand_pure kuairand_moe rankmixer_moe rankmixer_1b_16gpus"
BF16 = ["dense.zero_stage=2", "dense.precision=bf16", "dense.clip_norm=1.0"]
EXPERTS = {
    "by token": [],
    "by token, zero 0, clipped": ["dense.zero_stage=0", "dense.clip_norm=1.0"],
    "by token in four pieces, bf16": ["parallel.pieces=4", *BF16],
    "plain": ["parallel.mode=plain", "parallel.pieces=1"],
}
"""How experts lie over 8 of the 16 ranks."""


def cases() -> dict[str, tuple[str, list[str]]]:
    """Name of a case -> its config and overrides."""
    found = {f"backbone {name}": ("quickstart", [f"model.backbone={name}"]) for name in BACKBONES.split()}
    found |= {f"config {name}": (name, []) for name in FILES.split()}
    grid = ["parallel.expert_size=8"]
    found |= {f"experts {name}": ("quickstart_moe", [*grid, *more]) for name, more in EXPERTS.items()}
    found["zero 2 bf16"] = ("quickstart", BF16)
    found["zero 0 bf16"] = ("quickstart", ["dense.zero_stage=0", "dense.precision=bf16"])
    found["skips"] = ("quickstart", ["train.on_non_finite=skip"])
    found["adagrad"] = ("quickstart", ["dense.optimizer=adagrad", "dense.clip_norm=1.0"])
    return found


CASES = cases()
MUTANTS = {"a read in the loss": "read", "a CPU tensor in a layer": "mixture"}


@pytest.fixture(scope="module")
def found(launch):
    """Name of a case -> what a rank of 16 did in it."""
    return rehearse(
        launch,
        8,
        16,
        {name: (*case, "") for name, case in CASES.items()}
        | {name: ("quickstart", [], mutation) for name, mutation in MUTANTS.items()},
    )


def rehearse(launch, rank, world_size, cases):
    given = [[str(ROOT / "configs" / f"{file}.yaml"), *rest] for file, *rest in cases.values()]
    script = "tests/rehearsal/step_cases.py"
    return dict(zip(cases, lines_of(launch.python(script, str(rank), str(world_size), json.dumps(given))), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_scoring_on_the_device(found, name):
    assert not found[name]["error"], found[name]["error"]
    assert not unknown(found[name]["step"]["places"], IN_A_STEP | BY_CHOICE.get(name, {}))
    assert not unknown(found[name]["scoring"]["places"], IN_SCORING)


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


def test_a_read_that_somebody_adds_is_found(found):
    assert unknown(found["a read in the loss"]["step"]["places"], IN_A_STEP) == [
        "read rankmixer_dist/train/step.py:TrainStep._loss"
    ]


def test_a_cpu_tensor_that_somebody_adds_is_found(found):
    error = found["a CPU tensor in a layer"]["error"]
    assert "found at least two devices" in error and "twin:0" in error and "cpu" in error
