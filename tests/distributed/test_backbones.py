"""Every backbone trains from one config with one override, on two ranks, and goes on exactly where it stopped."""

import json
import math

import pytest

from rankmixer_dist.config import BACKBONES, load_config

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def losses(launch, small_config):
    """Losses per step of each backbone: of six steps at once, and of three and then three more."""
    runs = [(f"{kind}-{name}", name, steps) for name in BACKBONES for kind, steps in (("whole", 6), ("cut", 3))]
    runs += [(f"cut-{name}", name, 6) for name in BACKBONES]
    cases = [[f"name={run}", f"model.backbone={name}", f"train.max_steps={steps}"] for run, name, steps in runs]
    ended = launch.forked("tests/distributed/train_cases.py", str(small_config), json.dumps(cases), ranks=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("goes on from") == len(BACKBONES)

    def read(run):
        lines = (load_config(small_config, [f"name={run}"]).run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    return {name: (read(f"whole-{name}"), read(f"cut-{name}")) for name in BACKBONES}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_trains_and_resumes(losses, name):
    whole, cut = losses[name]
    assert len(whole) == 6
    assert all(map(math.isfinite, whole))
    assert whole[-1] != whole[0]
    assert cut == whole


def test_backbones_differ(losses):
    assert len({whole[-1] for whole, _ in losses.values()}) == len(BACKBONES)
