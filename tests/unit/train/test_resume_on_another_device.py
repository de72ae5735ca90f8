"""A checkpoint of one kind of device is taken up on the other; which random numbers go on is said."""

import dataclasses

import pytest
import torch

from rankmixer_dist.batch import Position
from rankmixer_dist.checkpoint.folder import checkpoint_path
from rankmixer_dist.checkpoint.saver import Saver
from rankmixer_dist.config import load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train.build import build_engine, build_model, build_tables, unknown_data
from rankmixer_dist.train.checkpoint import describe, resume, state_pieces
from rankmixer_dist.train.loop import Progress
from tests.conftest import ROOT

SEED = 7
BEGUN = "step-00000020 was saved without a GPU: the GPU's random numbers begin as in a new run, the CPU's go on\n"
ANEW = "step-00000020 was saved by 2 ranks and is taken up by 1: the random numbers begin anew\n"


class Generator:
    """A GPU's, as `torch.cuda` shows it."""

    def __init__(self, monkeypatch):
        self.manual_seed(0)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: self.state.clone())
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set)
        monkeypatch.setattr(torch.cuda, "manual_seed", self.manual_seed)

    def set(self, state, device):
        assert device == torch.device("cuda", 0)
        self.state = state.clone()

    def manual_seed(self, seed):
        self.state = torch.tensor([seed, 0]).view(torch.uint8)

    def draw(self):
        self.state.view(torch.int64)[1] += 1


@pytest.fixture(scope="module")
def run(one_rank):
    """Config, tables and engine of a run on one rank."""
    overrides = ["sparse.placement=local", "dense.engine=plain", f"seed={SEED}"]
    config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    model = build_model(config, unknown_data(config.features))
    tables, _ = build_tables(config, one_rank, rows_per_rank=8)
    return config, tables, build_engine(config, model, one_rank, rows_per_rank=8)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("after", ["cpu", "cuda"])
@pytest.mark.parametrize("before", ["cpu", "cuda"])
def test_a_checkpoint_is_taken_up_on_either_kind(tmp_path, one_rank, monkeypatch, capfd, run, before, after, ranks):
    config, tables, engine = run
    gpu = Generator(monkeypatch)
    on = {kind: dataclasses.replace(one_rank, device=torch.device(kind, 0)) for kind in ("cpu", "cuda")}
    gpu.draw()
    about = describe(config, Progress(20, 200, Position(0, 200)), engine, one_rank, {})
    saver = Saver(tmp_path, one_rank, keep=1)
    saver.save(about.model_copy(update={"world_size": ranks}), state_pieces(tables, engine, on[before]))
    saver.finish()
    saved = {"cpu": torch.get_rng_state(), "cuda": gpu.state.clone()}
    torch.rand(3)
    gpu.draw()

    assert resume(checkpoint_path(tmp_path, 20), tables, engine, on[after]).step == 20
    if ranks == 2:
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(SEED + 20).get_state())
        assert capfd.readouterr().out == ANEW
        return
    assert torch.equal(torch.get_rng_state(), saved["cpu"])
    begun = (before, after) == ("cpu", "cuda")
    if after == "cuda":
        assert torch.equal(gpu.state, torch.tensor([SEED, 0]).view(torch.uint8) if begun else saved["cuda"])
    assert capfd.readouterr().out == (BEGUN if begun else "")


def test_the_state_of_the_cpus_random_numbers_must_be_there(tmp_path, one_rank, run):
    config, tables, engine = run
    pieces = [piece for piece in state_pieces(tables, engine, one_rank) if piece.key != "random/cpu-00000"]
    saver = Saver(tmp_path, one_rank, keep=1)
    saver.save(describe(config, Progress(20, 200, Position(0, 200)), engine, one_rank, {}), pieces)
    saver.finish()
    with pytest.raises(UserError, match="does not hold random/cpu-00000"):
        resume(checkpoint_path(tmp_path, 20), tables, engine, one_rank)
