from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from rankmixer_dist.layers.adaptive_lambda import AdaptiveLambda
from rankmixer_dist.layers.dtsi_moe import DTSIMoE, Fusion
from rankmixer_dist.layers.reference import moe as reference
from rankmixer_dist.layers.routing_report import RoutedRows

TOLERANCE = {torch.float64: 1e-14, torch.float32: 6e-6}  # seen: 1.0e-15, 6.4e-7

FUSIONS = get_args(Fusion)
SHAPES = [(3, 3, 4, 9, 7), (1, 2, 3, 5, 4), (4, 1, 2, 8, 3), (5, 2, 1, 3, 1)]  # B, T, E, D, F


def layer(rows, num_tokens, num_experts, token_dim, hidden_dim, fusion="stochastic_rows"):
    """A layer whose routers differ, and tokens."""
    torch.manual_seed(0)
    moe = DTSIMoE(
        num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts, hidden_dim=hidden_dim, fusion=fusion
    )
    with torch.no_grad():
        for parameter in (*moe.train_router.parameters(), *moe.infer_router.parameters()):
            parameter.normal_(0.0, 0.5)
    return moe, torch.randn(num_tokens, rows, token_dim, dtype=torch.float64)


def own_penalty(moe, report):
    """As if the batch of `report` were the global one."""
    return moe.penalty(report, report.used_TE, report.rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_training_forward_matches_reference(matches_reference, shape, fusion, dtype):
    moe, x_TBD = layer(*shape, fusion)
    inputs = {"x_TBD": x_TBD}
    infer_rows = [b % 2 == 0 for b in range(shape[0])]
    if fusion.startswith("stochastic"):
        inputs["rows"] = RoutedRows.all_real(torch.tensor(infer_rows))
    matches_reference(
        moe,
        lambda inputs, w: reference.dtsi_moe(inputs["x_TBD"], w, fusion, infer_rows),
        inputs,
        dtype,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_serving_forward_and_penalty_match_reference(shape, fusion):
    moe, x_TBD = layer(*shape, fusion)
    moe.double().eval()
    w = dict(moe.named_parameters())
    row_weights = [1.0, 0.0, 0.5, 2.0, 0.0][: shape[0]]
    real_B = torch.tensor(row_weights) > 0
    y_TBD, report = moe(x_TBD, RoutedRows(real_B, torch.zeros_like(real_B)))
    # Seen: 1.1e-15.
    torch.testing.assert_close(y_TBD, reference.dtsi_moe(x_TBD, w, "infer", ()), rtol=0, atol=1e-14)
    torch.testing.assert_close(own_penalty(moe, report), reference.l1(x_TBD, w, row_weights), rtol=1e-14, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(moe(x_TBD)[0], y_TBD.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_both_routers_learn_the_task(fusion):
    moe, x_TBD = layer(64, 3, 4, 9, 7, fusion)
    for _ in range(8):  # draws of stochastic_steps
        moe(x_TBD.float())[0].square().sum().backward()
    for router in (moe.train_router, moe.infer_router):
        # Of every token and expert; seen: at least 27 and 19.
        assert (router.linear.weight.grad.norm(dim=1) > 2).all()
        assert (router.linear.bias.grad.abs() > 2).all()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("term", ["penalty", "distance"])
def test_penalty_and_distance_reach_the_infer_router_alone(fusion, term):
    moe, x_TBD = layer(8, 3, 4, 9, 7, fusion)
    x_TBD = x_TBD.float()
    _, report = moe(x_TBD)
    value = own_penalty(moe, report) if term == "penalty" else report.distance
    if term == "distance" and fusion != "straight_through":
        assert value.item() == 0 and not value.requires_grad
        return
    value.backward()
    touched = {name for name, p in moe.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {"infer_router.linear.weight", "infer_router.linear.bias"}


def test_distance_is_between_the_gates_of_real_rows():
    moe, x_TBD = layer(5, 3, 4, 9, 7, "straight_through")
    real_B = torch.tensor([True, True, False, True, True])
    _, report = moe.double()(x_TBD, RoutedRows(real_B, real_B))
    w = dict(moe.named_parameters())
    gates = [reference.dtsi_gates(x_TBD[:, b], w) for b in (0, 1, 3, 4)]
    expected = sum((infer_TE - train_TE).square().sum() for train_TE, infer_TE in gates)
    torch.testing.assert_close(report.distance, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_starts_with_the_path_that_is_served(fusion):
    torch.manual_seed(0)
    moe = DTSIMoE(num_tokens=3, token_dim=9, num_experts=4, hidden_dim=7, fusion=fusion)
    x_TBD = torch.randn(3, 6, 9)
    torch.testing.assert_close(moe.train()(x_TBD)[0], moe.eval()(x_TBD)[0], rtol=0, atol=1e-6)


def test_report_counts_real_rows_only():
    moe, x_TBD = layer(6, 2, 3, 9, 7)
    x_TBD = x_TBD.float()
    with torch.no_grad():
        moe.infer_router.linear.bias[1, 2] = -100.0
    x_TBD[:, 4:] = float("nan")
    real_B = torch.arange(6) < 4
    _, report = moe(x_TBD, RoutedRows(real_B, real_B))
    gates_TBE = moe.infer_router(x_TBD[:, :4])
    assert report.rows == 4 and report.used_TE[1, 2] == 0
    torch.testing.assert_close(report.used_TE, (gates_TBE > 0).float().sum(dim=1))
    torch.testing.assert_close(report.gates_TE, gates_TBE.sum(dim=1))
    torch.testing.assert_close(report.active_T, (gates_TBE > 0).float().mean(dim=(1, 2)))
    torch.testing.assert_close(own_penalty(moe, report), gates_TBE.sum() / 4)
    nothing_B = torch.zeros(6, dtype=torch.bool)
    _, empty = moe(x_TBD, RoutedRows(nothing_B, nothing_B))
    assert own_penalty(moe, empty) == 0 and empty.active_T.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_rows_are_drawn_from_the_global_generator_that_share_of_them_served(share):
    moe, x_TBD = layer(64, 2, 3, 9, 7)
    moe.served_share = share
    x_TBD = x_TBD.float()

    def run(seed):
        torch.manual_seed(seed)
        return [moe(x_TBD)[0] for _ in range(2)]

    first, second = run(1)
    assert torch.equal(first, run(1)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, run(2)[0])
    served, _ = moe.eval()(x_TBD)
    taken = (first - served).abs().amax(dim=(0, 2)) < 1e-5
    assert abs(taken.sum() - 64 * share) <= 16  # 4 standard deviations


def test_a_step_is_drawn_as_a_whole():
    moe, x_TBD = layer(9, 2, 3, 9, 7, "stochastic_steps")
    x_TBD = x_TBD.float()
    infer, train = (moe(x_TBD, RoutedRows.all_real(torch.full((9,), taken)))[0] for taken in (True, False))
    outputs = [moe(x_TBD)[0] for _ in range(20)]
    assert all(torch.equal(output, infer) or torch.equal(output, train) for output in outputs)
    assert 0 < sum(torch.equal(output, infer) for output in outputs) < 20


@pytest.mark.parametrize(
    ("fusion", "target"),
    [
        ("stochastic_rows", 0.75),  # opens gates
        ("stochastic_rows", 0.125),
        ("stochastic_steps", 0.25),
        ("straight_through", 0.25),
        ("mean", 0.25),
    ],
)
def test_lambda_drives_the_active_ratio_to_its_target(fusion, target):
    torch.manual_seed(0)
    sizes = {"num_tokens": 4, "token_dim": 16, "num_experts": 8, "hidden_dim": 8}
    teacher = DTSIMoE(**sizes).eval()
    moe = DTSIMoE(**sizes, fusion=fusion)
    adaptive = AdaptiveLambda(target=target)
    optimizer = torch.optim.Adam(moe.parameters(), lr=3e-3)
    ratios, losses = [], []
    for _ in range(400):
        x_TBD = F.layer_norm(torch.randn(4, 64, 16), (16,))
        with torch.no_grad():
            goal_TBD, _ = teacher(x_TBD)
        y_TBD, report = moe(x_TBD)
        loss = F.mse_loss(y_TBD, goal_TBD)
        losses.append(loss.detach())
        optimizer.zero_grad()
        (loss + adaptive(own_penalty(moe, report), report.closed / 64) + 0.1 * report.distance / 64).backward()
        optimizer.step()
        ratios.append(report.active_T.mean())
        adaptive.update(ratios[-1])
    # Seen with two seeds: off by up to 7 %. Without the gain, `mean` was off by 86 %.
    assert torch.stack(ratios[-100:]).mean().item() == pytest.approx(target, rel=0.1)
    if fusion.startswith("stochastic"):
        with torch.no_grad():
            served = F.mse_loss(moe.eval()(x_TBD)[0], goal_TBD)
        # What is served is near what was trained. Seen: 0.8 to 1.4 of it, where `mean` is at 5 to 8.
        assert served < 1.7 * torch.stack(losses[-50:]).mean()


def test_lambda_and_mu_follow_their_rule_and_keep_their_state():
    bounds = {"minimum": 1e-5, "maximum": 1e-3}
    adaptive = AdaptiveLambda(target=0.25, initial=1e-4, alpha=1.5, gain=1, width=0.2, memory=0, **bounds)
    slowly = 1.5**0.5
    for active, closing, opening in (
        (0.4, 1.5e-4, 1e-5),
        (0.25, 1.5e-4, 1e-5),
        (0.1, 1e-4, 1.5e-5),
        (float("nan"), 1e-4, 1.5e-5),
        (0.275, 1e-4 * slowly, 1.5e-5 / slowly),
        (0.225, 1e-4, 1.5e-5),
    ):
        adaptive.update(active)
        assert adaptive.coefficients.tolist() == pytest.approx([closing, opening], rel=1e-6)
    assert adaptive(torch.tensor(3.0), torch.tensor(2.0)).item() == pytest.approx(3.3e-4, rel=1e-6)
    for active, ends in ((torch.tensor(1.0), (1e-3, 1e-5)), (torch.tensor(0.0), (1e-5, 1e-3))):
        for _ in range(20):
            adaptive.update(active)
        assert adaptive.coefficients.tolist() == pytest.approx(ends, rel=1e-6)
    sign = AdaptiveLambda(target=0.25, initial=1e-4, alpha=1.5, gain=1, width=0, memory=0)
    sign.update(0.2501)
    assert sign.coefficients[0].item() == pytest.approx(1.5e-4, rel=1e-6)
    twin = AdaptiveLambda(target=0.25, gain=1).bfloat16()
    assert twin.state.dtype == torch.float32
    twin.load_state_dict(adaptive.state_dict())
    assert torch.equal(twin.coefficients, adaptive.coefficients)


def test_the_gain_comes_and_goes_with_the_excess():
    bounds = {"minimum": 1e-5, "maximum": 1e-2}
    adaptive = AdaptiveLambda(target=0.25, initial=1e-4, alpha=1.5, gain=8, width=0.2, memory=0, **bounds)
    assert adaptive.coefficients.tolist() == pytest.approx([1e-4, 1e-5], rel=1e-6)
    for active, closing, opening in (
        (0.4, 8 * 1.5e-4, 1e-5),  # mu, an eighth of its least, stays there
        (0.25, 1.5e-4, 1e-5),
        (0.275, 8**0.5 * 1.5**1.5 * 1e-4, 1e-5),
        (0.25, 1.5**1.5 * 1e-4, 1e-5),
        (0.2, 1.5**0.5 * 1e-4 / 8, 8 * 1.5e-5),
        (float("nan"), 1.5**0.5 * 1e-4, 1.5e-5),
    ):
        adaptive.update(active)
        assert adaptive.coefficients.tolist() == pytest.approx([closing, opening], rel=1e-6)
    twin = AdaptiveLambda(target=0.25, gain=8, minimum=1e-5)
    adaptive.update(0.2)
    twin.load_state_dict(adaptive.state_dict())
    assert torch.equal(twin.coefficients, adaptive.coefficients)


def test_an_excess_counts_by_and_by():
    adaptive = AdaptiveLambda(target=0.25, initial=1e-4, alpha=1.5, gain=8, width=0.2, memory=0.75)
    excess, slow = 0.0, 1e-4
    for active, now in ((0.4, 1), (0.4, 1), (0.25, 0), (0.275, 0.5), (0.2, -1)):
        adaptive.update(active)
        excess = 0.75 * excess + 0.25 * now
        slow *= 1.5**excess
        assert adaptive.coefficients[0].item() == pytest.approx(slow * 8**excess, rel=1e-5)


def test_gates_that_are_closed_for_all_rows_can_be_opened():
    moe, x_TBD = layer(16, 2, 3, 9, 7)
    x_TBD = x_TBD.float()
    moe.infer_router.linear.bias.data[:] = -9.0
    real_B = torch.arange(16) < 10
    _, report = moe(x_TBD, RoutedRows(real_B, real_B))
    logits_TBE = moe.infer_router.logits(x_TBD[:, :10])
    assert (logits_TBE < 0).all()
    torch.testing.assert_close(report.closed, -logits_TBE.sum(), rtol=1e-5, atol=0)
    report.closed.backward()
    assert (moe.infer_router.linear.bias.grad == -10).all()
    assert own_penalty(moe, report) == 0


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="fusion 'sum' is unknown; use one of stochastic_rows"):
        DTSIMoE(num_tokens=2, token_dim=3, num_experts=2, hidden_dim=3, fusion="sum")
    with pytest.raises(ValueError, match="served_share 1 must lie between 0 and 1"):
        DTSIMoE(num_tokens=2, token_dim=3, num_experts=2, hidden_dim=3, served_share=1)
    for target in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="target .* above 0 and at most 1"):
            AdaptiveLambda(target=target)
    with pytest.raises(ValueError, match="alpha 1.0 must be above 1"):
        AdaptiveLambda(target=0.5, alpha=1.0)
    with pytest.raises(ValueError, match="gain 0.5 must be at least 1"):
        AdaptiveLambda(target=0.5, gain=0.5)
    with pytest.raises(ValueError, match="memory 1 must be at least 0 and below 1"):
        AdaptiveLambda(target=0.5, memory=1)
    with pytest.raises(ValueError, match="width -1 must be at least 0"):
        AdaptiveLambda(target=0.5, width=-1)
    with pytest.raises(ValueError, match="0 < minimum"):
        AdaptiveLambda(target=0.5, minimum=0.0)
