import pytest
import torch

from rankmixer_dist.layers.reference import moe as reference
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.softmax_moe import SoftmaxTopKMoE

TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-6}  # seen: 1.1e-15, 4.0e-7

SHAPES = [(3, 3, 4, 9, 7), (1, 2, 3, 5, 4), (4, 1, 2, 8, 3), (5, 2, 1, 3, 1)]  # B, T, E, D, F
OPTIONS = [
    {"top_k": 1},
    {"top_k": 2, "alpha": 1.5},
    {"top_k": 4},
    {"top_k": 2, "shared_expert": True},
    {"top_k": 3, "shared_expert": True, "sparse_training": True},
    {"top_k": 2, "sparse_training": True},
]
CASES = [(shape, options) for shape in SHAPES for options in OPTIONS if options["top_k"] <= shape[2]]


def layer(rows, num_tokens, num_experts, token_dim, hidden_dim, **options):
    torch.manual_seed(0)
    moe = SoftmaxTopKMoE(
        num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts, hidden_dim=hidden_dim, **options
    )
    return moe, torch.randn(num_tokens, rows, token_dim, dtype=torch.float64)


def real(row_weights):
    real_B = torch.tensor(row_weights) > 0
    return RoutedRows(real_B, torch.zeros_like(real_B))


def own_penalty(moe, report):
    """As if the batch of `report` were the global one."""
    return moe.penalty(report, report.used_TE, report.rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "options"), CASES)
def test_both_passes_match_reference(matches_reference, shape, options, dtype):
    moe, x_TBD = layer(*shape, **options)
    top_k, shared = options["top_k"], options.get("shared_expert", False)
    alpha = options.get("alpha", shape[2] / top_k)
    matches_reference(
        moe,
        lambda inputs, w: reference.softmax_moe(inputs["x_TBD"], w, top_k, shared, alpha),
        {"x_TBD": x_TBD},
        dtype,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_serving_is_training_and_the_report_fits(shape, options):
    moe, x_TBD = layer(*shape, **options)
    moe.double()
    row_weights = [1.0, 0.0, 0.5, 2.0, 0.0][: shape[0]]
    trained, report = moe(x_TBD, real(row_weights))
    top_k, shared = options["top_k"], options.get("shared_expert", False)
    expected = reference.balance(x_TBD, dict(moe.named_parameters()), top_k - shared, row_weights)
    torch.testing.assert_close(own_penalty(moe, report), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(report.active_T, torch.full_like(report.active_T, top_k / shape[2]))
    assert report.distance == 0
    assert report.rows == sum(weight > 0 for weight in row_weights)
    if shared:
        assert (report.used_TE[:, 0] == report.rows).all()
    with torch.no_grad():
        # Seen: 2.2e-16.
        torch.testing.assert_close(moe.eval()(x_TBD)[0], trained.detach(), rtol=0, atol=2e-15)


def test_balance_loss_is_one_when_balanced_and_more_when_not():
    moe, x_TBD = layer(64, 2, 4, 9, 3, top_k=1)
    x_TBD = x_TBD.float()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.bias.copy_(torch.tensor([9.0, 0, 0, 0]).expand(2, 4))
    _, report = moe(x_TBD)
    penalty = own_penalty(moe, report)
    assert penalty.item() == pytest.approx(2 * 4.0, rel=0.01)
    assert (report.used_TE == 0).sum() == 2 * 3
    penalty.backward()
    assert (moe.router.bias.grad[:, 0] > 0).all() and (moe.router.bias.grad[:, 1:] < 0).all()
    with torch.no_grad():
        moe.router.bias.zero_()
        moe.router.weight[:, :4] = torch.eye(4)
    one_each_TBD = torch.eye(9)[:4].expand(2, 4, 9).contiguous()
    assert own_penalty(moe, moe(one_each_TBD)[1]).item() == pytest.approx(2 * 1.0, rel=1e-6)


def test_shares_of_the_penalty_add_up_to_that_of_the_whole_batch():
    moe, x_TBD = layer(12, 2, 4, 9, 3, top_k=2)
    _, report = moe.double()(x_TBD)
    shares = [moe.penalty(moe(part_TBD)[1], report.used_TE, report.rows) for part_TBD in x_TBD.split([5, 7], dim=1)]
    torch.testing.assert_close(sum(shares), own_penalty(moe, report), rtol=1e-14, atol=0)


def test_bf16_stays_bf16_and_near_fp32():
    moe, x_TBD = layer(6, 3, 4, 32, 16, top_k=4)  # all experts, so that rounding changes no choice
    right, _ = moe(x_TBD.float())
    output, report = moe.bfloat16()(x_TBD.bfloat16())
    assert output.dtype == torch.bfloat16 and report.pressed_TR.dtype == torch.float32
    # Seen: 0.0036 on values up to 0.5.
    torch.testing.assert_close(output.float(), right, rtol=0, atol=0.02)


def test_impossible_options_are_refused():
    sizes = {"num_tokens": 2, "token_dim": 3, "num_experts": 4, "hidden_dim": 3}
    with pytest.raises(ValueError, match=r"top_k 5 must lie in 1\.\.4"):
        SoftmaxTopKMoE(**sizes, top_k=5)
    with pytest.raises(ValueError, match=r"top_k 1 must lie in 2\.\.4: num_experts is 4, one of them shared"):
        SoftmaxTopKMoE(**sizes, top_k=1, shared_expert=True)
    with pytest.raises(ValueError, match="alpha 0 must be above 0"):
        SoftmaxTopKMoE(**sizes, top_k=1, alpha=0)
