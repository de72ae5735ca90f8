"""From the model section of a config to a model: every backbone builds, and the paper's sizes come out."""

import inspect

import pytest
import torch

from rankmixer_dist.config import ModelConfig, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.models.backbones import BACKBONES, build_backbone
from rankmixer_dist.train.build import auxiliary_weight, backbone_options, weightless_model


@pytest.mark.parametrize("name", BACKBONES)
def test_a_section_names_its_backbones_arguments_and_defaults(name):
    model = ModelConfig(backbone=name)
    options = backbone_options(model, num_tasks=3)
    arguments = inspect.signature(BACKBONES[name]).parameters
    assert options.keys() | {"num_tokens", "token_dim"} == arguments.keys()
    derived = {"hidden_dim", "num_gates"}
    for key, value in options.items():
        if key not in derived and arguments[key].default is not inspect.Parameter.empty:
            assert value == arguments[key].default, key
    assert build_backbone(name, num_tokens=8, token_dim=64, **options)(torch.randn(2, 8, 64)).shape[0] == 2


def test_one_gate_a_task():
    assert backbone_options(ModelConfig(backbone="moe"), num_tasks=5)["num_gates"] == 5


def test_only_a_backbone_with_stages_has_an_auxiliary_weight():
    assert auxiliary_weight(ModelConfig(backbone="tokenmixer_large")) == 0.1
    assert auxiliary_weight(ModelConfig()) == 0.0


@pytest.mark.parametrize(("name", "parameters"), [("rankmixer_100m", 107e6), ("rankmixer_1b", 1.1e9)])
def test_the_papers_sizes(name, parameters):
    model = weightless_model(load_config(f"configs/{name}.yaml"))
    assert model.cost().parameters == sum(p.numel() for p in model.parameters())
    assert abs(model.cost().parameters / parameters - 1) < 0.03
    # 2 FLOPs a weight and row forward, 6 in training: all but biases and norms are used once.
    assert model.cost().flops_per_row_train == pytest.approx(6 * parameters, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("dtsi", {"fusion": "mean"}), ("softmax_topk", {}), ("softmax_topk", {"shared_expert": True})],
)
def test_experts_by_config_cost_what_the_closed_form_says(kind, options):
    overrides = [f"model.rankmixer.moe.{key}={value}" for key, value in options.items()]
    overrides += [f"model.rankmixer.moe.kind={kind}", "model.rankmixer.moe.active_ratio=0.25"]
    model = weightless_model(load_config("configs/quickstart.yaml", overrides))
    assert model.cost().parameters == sum(p.numel() for p in model.parameters())
    layers = [layer for layer in model.modules() if isinstance(layer, PerTokenMoE)]
    assert len(layers) == 2 and all(layer.experts.num_experts == 8 for layer in layers)
    without = weightless_model(load_config("configs/quickstart.yaml"))
    # Eight experts of which a quarter is used: eight times the FFN's parameters, twice its FLOPs.
    assert model.cost().parameters > 6 * without.backbone.cost().parameters
    assert model.backbone.cost().flops_per_row_forward < 2.3 * without.backbone.cost().flops_per_row_forward


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.rankmixer.moe.kind=dtsi", "model.rankmixer.shared_ffn=true"], "leave shared_ffn"),
        (["model.rankmixer.moe.kind=softmax_topk", "model.rankmixer.moe.active_ratio=0.3"], "such as 0.25"),
        (["model.backbone=hiformer", "model.hiformer.num_heads=3"], "not a multiple of the 3 heads"),
        (["model.backbone=tokenmixer_large", "model.tokenizer.global_token=true"], "not a multiple of the 9 tokens"),
        (["model.tokenizer.kind=chunk", "model.tokenizer.num_tokens=64"], "chunks"),
        (["model.rankmixer.mixing=share", "model.rankmixer.shared_ffn=true"], "drop shared_ffn"),
    ],
)
def test_sizes_that_do_not_go_together_are_one_clear_line(overrides, words):
    with pytest.raises(UserError, match=f"^model: .*{words}"):
        weightless_model(load_config("configs/quickstart.yaml", overrides))
