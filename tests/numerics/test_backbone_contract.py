"""What holds for every backbone: layouts, dtypes, gradients, rows that do not meet, and sizes that are refused."""

import pytest
import torch

from rankmixer_dist.models.backbones import build_backbone

# Name, T, D, options, and the tolerance in bf16: at most ten times the error seen, which stands behind it, with the
# largest value of the output.
CASES = [
    ("rankmixer", 4, 32, {"num_blocks": 2, "hidden_dim": 64}, 0.05),  # 0.0083 of 1.3
    ("tokenmixer_large", 4, 32, {"num_blocks": 3, "down_init": 1.0}, 0.05),  # 0.0076 of 1.5
    ("dlrm_mlp", 4, 32, {"hidden_dims": (64, 16)}, 0.01),  # 0.0012 of 0.6
    ("dcn_v2", 4, 16, {"hidden_dims": (32, 16)}, 0.2),  # 0.029 of 7, as the two that follow
    ("dcn_v2", 4, 16, {"hidden_dims": (32, 16), "rank": 3}, 0.2),
    ("dcn_v2", 4, 16, {"hidden_dims": (32, 16), "rank": 3, "num_experts": 3}, 0.2),
    ("rdcn", 4, 16, {"rank": 8, "hidden_dims": (32, 16)}, 0.3),  # 0.039 of 11
    ("moe", 4, 16, {"num_gates": 2, "hidden_dims": (32, 16)}, 0.01),  # 0.0014 of 0.4
    ("autoint", 4, 32, {}, 0.02),  # 0.0034 of 0.6
    ("dhen", 4, 16, {"rank": 8, "dot_hidden_dims": (32,), "hidden_dims": (32, 16)}, 0.03),  # 0.0034 of 0.5
    ("wukong", 4, 16, {"fm_hidden_dims": (32,), "hidden_dims": (32, 16)}, 0.03),  # 0.0035 of 0.6
    ("hetero_attention", 4, 32, {}, 0.05),  # 0.0094 of 1.3
    ("hiformer", 4, 32, {"rank": 16}, 0.05),  # 0.0082 of 1.4
    ("hhft", 4, 32, {"rank": 16}, 0.05),  # 0.013 of 1.5
]
every_case = pytest.mark.parametrize(("name", "num_tokens", "token_dim", "options", "bf16"), CASES)


def built(name, num_tokens, token_dim, options):
    torch.manual_seed(0)
    backbone = build_backbone(name, num_tokens=num_tokens, token_dim=token_dim, **options)
    return backbone, torch.randn(8, num_tokens, token_dim)


@every_case
def test_memory_layout_of_the_tokens_does_not_matter(name, num_tokens, token_dim, options, bf16):
    backbone, x_BTD = built(name, num_tokens, token_dim, options)
    token_major = x_BTD.transpose(0, 1).contiguous().transpose(0, 1)
    # Seen: 0; another BLAS may pick its kernel by the strides.
    torch.testing.assert_close(backbone(x_BTD).out_BD, backbone(token_major).out_BD, rtol=0, atol=1e-6)


@every_case
def test_a_row_does_not_depend_on_the_others(name, num_tokens, token_dim, options, bf16):
    backbone, x_BTD = built(name, num_tokens, token_dim, options)
    pooled_BD = backbone(x_BTD).out_BD
    assert pooled_BD.shape == (8, backbone.out_dim)
    torch.testing.assert_close(backbone(x_BTD[2:3]).out_BD, pooled_BD[2:3], rtol=0, atol=5e-6)  # seen: 7.2e-7
    assert backbone(x_BTD[:0]).out_BD.shape == (0, backbone.out_dim)


@every_case
def test_bf16_ends_in_fp32_at_every_stage(name, num_tokens, token_dim, options, bf16):
    backbone, x_BTD = built(name, num_tokens, token_dim, options)
    x_BTD = x_BTD.bfloat16()
    rounded = backbone.bfloat16()(x_BTD)
    exact = backbone.float()(x_BTD.float())
    assert len(rounded.stages) == backbone.num_auxiliary
    pairs = zip((rounded.out_BD, *rounded.stages), (exact.out_BD, *exact.stages), strict=True)
    for pooled_BD, exact_BD in pairs:
        assert pooled_BD.dtype == torch.float32
        torch.testing.assert_close(pooled_BD, exact_BD, rtol=0, atol=bf16)


@every_case
def test_scoring_makes_no_stages_and_the_same_output(name, num_tokens, token_dim, options, bf16):
    backbone, x_BTD = built(name, num_tokens, token_dim, options)
    scored = backbone.eval()(x_BTD)
    assert scored.stages == scored.routing == ()
    assert torch.equal(scored.out_BD, backbone.train()(x_BTD).out_BD)


@every_case
def test_every_weight_and_every_token_learns(name, num_tokens, token_dim, options, bf16):
    backbone, x_BTD = built(name, num_tokens, token_dim, options)
    backbone(x_BTD.requires_grad_()).out_BD.square().sum().backward()
    for what, value in [("tokens", x_BTD), *backbone.named_parameters()]:
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.any(), what
    assert x_BTD.grad.any(dim=2).all()


@every_case
@pytest.mark.parametrize("size", ["num_tokens", "token_dim"])
def test_a_size_below_one_is_refused_by_name(name, num_tokens, token_dim, options, bf16, size):
    sizes = {"num_tokens": num_tokens, "token_dim": token_dim, size: 0}
    with pytest.raises(ValueError, match=f"{size} 0"):
        build_backbone(name, **sizes, **options)
