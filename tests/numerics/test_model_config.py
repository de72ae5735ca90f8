"""From the model section of a config to a model: every backbone builds, and the paper's sizes come out."""

import inspect

import pytest
import torch

from rankmixer_dist.config import BACKBONES, ModelConfig, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.models.backbones import backbone_class, build_backbone
from rankmixer_dist.models.counted import count
from rankmixer_dist.train.build import auxiliary_weight, backbone_options, weightless_model
from tests.numerics.test_backbone_contract import CASES


@pytest.mark.parametrize("name", BACKBONES)
def test_a_section_names_its_backbones_arguments_and_defaults(name):
    model = ModelConfig(backbone=name)
    options = backbone_options(model, num_tasks=3)
    arguments = inspect.signature(backbone_class(name)).parameters
    assert options.keys() | {"num_tokens", "token_dim"} == arguments.keys()
    derived = {"hidden_dim", "num_gates"}
    for key, value in options.items():
        if key not in derived and arguments[key].default is not inspect.Parameter.empty:
            assert value == arguments[key].default, key
    assert build_backbone(name, num_tokens=8, token_dim=64, **options)(torch.randn(2, 8, 64)).out_BD.shape[0] == 2


def test_one_gate_a_task():
    assert backbone_options(ModelConfig(backbone="moe"), num_tasks=5)["num_gates"] == 5


def test_only_a_backbone_with_stages_has_an_auxiliary_weight():
    assert auxiliary_weight(ModelConfig(backbone="tokenmixer_large")) == 0.1
    assert auxiliary_weight(ModelConfig()) == 0.0


@pytest.mark.parametrize(("name", "parameters"), [("rankmixer_100m", 107e6), ("rankmixer_1b", 1.1e9)])
def test_the_papers_sizes(name, parameters):
    cost = count(weightless_model(load_config(f"configs/{name}.yaml")))
    assert abs(cost.parameters / parameters - 1) < 0.03
    # 2 FLOPs a weight and row forward, 6 in training: all but biases and norms are used once.
    assert cost.flops_per_row_train == pytest.approx(6 * parameters, rel=0.03)


# Parameters, and FLOPs a row forward and in training, a row with 20 events.
SIZES = {
    "rankmixer": (285_188, 620_032, 1_860_096),
    "tokenmixer_large": (806_663, 1_668_608, 5_006_976),
    "dlrm_mlp": (414_020, 883_328, 2_649_984),
    "dcn_v2": (1_203_524, 2_459_264, 7_377_792),
    "rdcn": (1_009_988, 2_118_272, 6_354_816),
    "moe": (1_603_652, 3_264_128, 9_792_384),
    "autoint": (69_956, 934_016, 2_802_048),
    "dhen": (782_628, 2_591_360, 7_774_080),
    "hiformer": (2_191_876, 4_453_888, 13_361_664),
    "wukong": (743_940, 1_579_648, 4_738_944),
    "hetero_attention": (815_620, 1_701_376, 5_104_128),
    "hhft": (1_901_828, 3_880_448, 11_641_344),
}
MOE, CHUNK, GLOBAL = "rankmixer.moe.kind", "tokenizer.kind=chunk", "tokenizer.global_token=true"
LARGE = ("backbone=tokenmixer_large", "tokenmixer_large.num_blocks=5", "head_hidden=[16]")
OPTIONS = [
    ((f"{MOE}=dtsi", "rankmixer.moe.active_ratio=0.3"), (2_158_340, 1_386_804, 13_017_600)),
    ((f"{MOE}=dtsi", "rankmixer.moe.active_ratio=1"), (2_158_340, 4_322_816, 13_017_600)),
    ((f"{MOE}=softmax_topk", "rankmixer.moe.active_ratio=0.25"), (2_150_020, 1_177_088, 12_968_448)),
    (
        (f"{MOE}=softmax_topk", "rankmixer.moe.active_ratio=0.25", "rankmixer.moe.sparse_training=true"),
        (2_150_020, 1_177_088, 3_531_264),
    ),
    (("rankmixer.mixing=self_attention",), (318_468, 1_177_088, 3_531_264)),
    (("tokenizer.hidden_ratio=0.5", GLOBAL, "token_dim=90"), (640_503, 1_325_624, 3_976_872)),
    ((CHUNK, GLOBAL, "token_dim=90"), (623_538, 1_291_964, 3_875_892)),
    (("tokenizer.kind=auto_split",), (333_572, 716_800, 2_150_400)),
    (("head_hidden=[16,8]",), (288_548, 626_608, 1_879_824)),
    (LARGE, (1_012_522, 2_067_680, 6_240_480)),
]


@pytest.mark.parametrize(
    ("overrides", "sizes"), [*(((f"backbone={name}",), sizes) for name, sizes in SIZES.items()), *OPTIONS]
)
def test_parameters_and_flops_of_a_model(overrides, sizes):
    cost = count(weightless_model(load_config("configs/quickstart.yaml", [f"model.{key}" for key in overrides])))
    assert (cost.parameters, cost.flops_per_row_forward, cost.flops_per_row_train) == sizes
    assert cost.breakdown().keys() >= {"pooling.watched", "tokenizer", "backbone", "heads"}


def test_every_backbone_keeps_the_contract():
    assert {name for name, *_ in CASES} == {*BACKBONES}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("dtsi", {"fusion": "mean"}), ("softmax_topk", {}), ("softmax_topk", {"shared_expert": True})],
)
def test_experts_by_config_are_the_layers_that_it_names(kind, options):
    overrides = [f"model.rankmixer.moe.{key}={value}" for key, value in options.items()]
    overrides += [f"model.rankmixer.moe.kind={kind}", "model.rankmixer.moe.active_ratio=0.25"]
    model = weightless_model(load_config("configs/quickstart.yaml", overrides))
    layers = [layer for layer in model.modules() if isinstance(layer, PerTokenMoE)]
    assert len(layers) == 2 and all(layer.experts.num_experts == 8 for layer in layers)
    assert [layer.active_ratio for layer in layers] == [0.25, 0.25]
    with_experts, without = (count(m) for m in (model, weightless_model(load_config("configs/quickstart.yaml"))))
    # Eight experts of which a quarter is used: eight times the FFN's parameters, twice its FLOPs.
    assert with_experts.parameters > 6 * without.parameters
    assert with_experts.flops_per_row_forward < 2.3 * without.flops_per_row_forward


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
