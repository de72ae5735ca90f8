"""The deterministic switch: what it sets, that it moves no bit on a CPU, and that no backbone needs what it forbids."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.reading import data_seen, find_prepared, open_training
from rankmixer_dist.batch import Position
from rankmixer_dist.config import BACKBONES, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.train.build import auxiliary_weight, build_engine, build_model, build_tables
from rankmixer_dist.train.determinism import take_deterministic_ways
from rankmixer_dist.train.routing import Routing
from rankmixer_dist.train.step import LearningRates, TrainStep
from rankmixer_dist.train.stopwatch import Stopwatch

# What `torch.use_deterministic_algorithms` says it will refuse on CUDA, as operators; further ones depend on arguments.
REFUSED = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_ctc_loss_backward",
    "_efficient_attention_backward", "_scaled_dot_product_efficient_attention_backward",
    "adaptive_max_pool2d_backward", "avg_pool3d_backward", "bincount", "cumprod", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "kthvalue",
    "max_unpool2d", "max_unpool3d", "median", "nll_loss2d_forward", "put", "put_", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "scatter_reduce", "scatter_reduce_",
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}  # fmt: skip
MODELS = {
    **{name: [f"model.backbone={name}"] for name in BACKBONES},
    "hidden tokenizer": ["model.tokenizer.hidden_ratio=0.5"],
    "dtsi": ["model.rankmixer.moe.kind=dtsi"],
    "softmax": ["model.rankmixer.moe.kind=softmax_topk", "model.rankmixer.moe.sparse_training=true"],
}


class Refused(TorchDispatchMode):
    """Collects the operators that torch refuses under the switch, on CUDA."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = set(), set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().removeprefix("aten::").split(".")[0]
        self.seen.add(name)
        running_sum = name == "cumsum" and (kwargs or {}).get("dtype", args[0].dtype).is_floating_point
        largest_of_bag = name == "_embedding_bag" and args[4] == 2
        if name in REFUSED or running_sum or largest_of_bag:
            self.found.add(name)
        return operator(*args, **kwargs or {})


@pytest.fixture
def switch(monkeypatch):
    """Turns the switch on for the length of a test."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield take_deterministic_ways
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def trained(small_config, topology, overrides):
    """Losses and weights after two steps and a forward pass as it is served; the operators that took part."""
    changes = ["sparse.placement=local", "dense.engine=plain", "dense.clip_norm=0.5", *overrides]
    config = load_config(small_config, changes)
    manifest = find_prepared(config, ["train"])
    model = build_model(config, data_seen(config, manifest))
    tables, _ = build_tables(config, topology, rows_per_rank=config.loader.batch_size)
    moe, cpu = config.model.mixture, torch.device("cpu")
    routing = None if moe is None else Routing(model, moe, seed=config.seed, device=cpu)
    step = TrainStep(
        tables,
        build_engine(config, model, topology, rows_per_rank=config.loader.batch_size),
        task_weights_K=torch.ones(len(config.features.tasks)),
        auxiliary_weight=auxiliary_weight(config.model),
        world_size=1,
        stopwatch=Stopwatch(cpu),
        routing=routing,
    )
    reading = open_training(config, manifest, rank=0, world_size=1, pin_memory=False).epoch(Position(0, 0))
    results = []
    with Refused() as operators:
        for number, (batch, _) in zip(range(1, 3), reading, strict=False):
            results.append(step.take(batch, number, LearningRates(1e-3, sparse_lr=0.05))[0].losses_K)
        reading.close()
        model.eval()
        with torch.no_grad():
            rows = None if routing is None else routing.rows(batch, 3)
            scored = model(tables(batch.ids), batch.numerics_BN, rows)
            results.append(scored.logits_BK)
    return [*results, *(p.detach().clone() for p in model.parameters())], operators


@pytest.mark.parametrize("name", MODELS)
def test_on_a_cpu_the_switch_moves_no_bit_and_no_model_needs_what_it_forbids(small_config, one_rank, switch, name):
    without, operators = trained(small_config, one_rank, MODELS[name])
    assert operators.found == set()
    assert {"bmm", "addmm", "mm"} & operators.seen and len(operators.seen) > 30  # it did look
    switch()
    assert torch.are_deterministic_algorithms_enabled()
    with_it, _ = trained(small_config, one_rank, MODELS[name])
    assert all(torch.equal(one, other) for one, other in zip(without, with_it, strict=True))


def test_cublas_and_nccl_are_told(switch):
    switch()
    assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["NCCL_ALGO"]) == (":4096:8", "Ring")
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(("name", "value"), [("CUBLAS_WORKSPACE_CONFIG", ":16:8"), ("NCCL_ALGO", "Ring")])
def test_what_the_environment_says_stays_where_it_keeps_an_order(switch, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    switch()
    assert os.environ[name] == value


@pytest.mark.parametrize(("name", "value"), [("CUBLAS_WORKSPACE_CONFIG", ":0:0"), ("NCCL_ALGO", "Tree")])
def test_another_way_in_the_environment_is_refused_before_anything_is_set(switch, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} is '{value}', which train.deterministic cannot use; make it"):
        switch()
    assert not torch.are_deterministic_algorithms_enabled()
