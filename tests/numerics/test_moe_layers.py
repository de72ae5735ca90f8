import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.reference import moe as reference
from rankmixer_dist.layers.relu_router import ReLURouter
from rankmixer_dist.layers.routing_report import sum_over_rows

TOLERANCE = {torch.float64: 7e-15, torch.float32: 3e-6}  # seen: 7.4e-16, 3.1e-7

SHAPES = [(3, 3, 4, 9, 7), (1, 2, 3, 5, 4), (4, 1, 2, 8, 3), (5, 2, 1, 3, 1), (7, 3, 5, 1, 2)]  # B, T, E, D, F


class Evaluation(nn.Module):
    """Experts behind ReLU gates of given logits, evaluated one way."""

    def __init__(self, experts, how):
        super().__init__()
        self.experts, self.how = experts, how

    def forward(self, x_TBD, logits_TBE):
        gates_TBE = F.relu(logits_TBE)
        if self.how == "dense":
            return self.experts.dense(x_TBD, gates_TBE)
        return self.experts.sparse(x_TBD, gates_TBE, grouped=self.how == "grouped")


def with_closed_gates(logits_TBE):
    """A row and a token without any open gate, and an expert that no row uses; the last of each is left alone."""
    logits_TBE = logits_TBE.clone()
    num_tokens, rows, num_experts = logits_TBE.shape
    logits_TBE[: min(1, num_tokens - 1)] = -1.0
    logits_TBE[:, : min(1, rows - 1)] = -1.0
    logits_TBE[-1, :, : min(1, num_experts - 1)] = -1.0
    logits_TBE[-1, -1, -1] = 0.7
    return logits_TBE


def expected(inputs, w):
    gates_TBE = F.relu(inputs["logits_TBE"])
    rows = range(gates_TBE.shape[1])
    return torch.stack([reference.mixture(inputs["x_TBD"][:, b], gates_TBE[:, b], w) for b in rows], dim=1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("how", ["dense", "by_expert"])
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_match_reference(matches_reference, shape, how, dtype):
    rows, num_tokens, num_experts, token_dim, hidden_dim = shape
    torch.manual_seed(0)
    experts = PerTokenExperts(
        num_tokens=num_tokens, num_experts=num_experts, token_dim=token_dim, hidden_dim=hidden_dim
    )
    inputs = {
        "x_TBD": torch.randn(num_tokens, rows, token_dim, dtype=torch.float64),
        "logits_TBE": with_closed_gates(torch.randn(num_tokens, rows, num_experts, dtype=torch.float64)),
    }
    matches_reference(Evaluation(experts, how), expected, inputs, dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("matches_reference", ["cpu"], indirect=True)  # GPUs have them in bf16 alone: tests/cuda
def test_grouped_products_match_reference(matches_reference):
    torch.manual_seed(0)
    experts = PerTokenExperts(num_tokens=3, num_experts=4, token_dim=8, hidden_dim=16)
    logits_TBE = with_closed_gates(torch.randn(3, 5, 4, dtype=torch.float64))
    logits_TBE[:, :, 2] = -1.0  # one expert number that no token uses
    inputs = {"x_TBD": torch.randn(3, 5, 8, dtype=torch.float64), "logits_TBE": logits_TBE}
    matches_reference(Evaluation(experts, "grouped"), expected, inputs, torch.float32, TOLERANCE[torch.float32])


@pytest.mark.parametrize("how", ["by_expert", "grouped"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_inference_is_the_same_all_ways(how, share):
    torch.manual_seed(0)
    experts = PerTokenExperts(num_tokens=3, num_experts=4, token_dim=16, hidden_dim=8)
    x_TBD = torch.randn(3, 40, 16)
    logits_TBE = torch.rand(3, 40, 4).where(torch.rand(3, 40, 4) < share, -1.0)
    with torch.inference_mode():
        outputs = [Evaluation(experts, one)(x_TBD, logits_TBE) for one in ("dense", how)]
    # Seen: 2.4e-7 on values up to 1.5.
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("how", ["dense", "by_expert", "grouped"])
def test_the_order_of_experts_does_not_matter(how):
    torch.manual_seed(0)
    experts = PerTokenExperts(num_tokens=2, num_experts=3, token_dim=8, hidden_dim=8)
    x_TBD, logits_TBE = torch.randn(2, 5, 8), torch.randn(2, 5, 3)
    before = Evaluation(experts, how)(x_TBD, logits_TBE)
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter, shape in (
            (experts.up.weight, (2, 8, 3, 8)),
            (experts.up.bias, (2, 1, 3, 8)),
            (experts.down.weight, (2, 1, 3, 64)),
            (experts.down.bias, (2, 1, 3, 8)),
        ):
            view = parameter.view(shape)
            view.copy_(view[:, :, order].clone())
    torch.testing.assert_close(before, Evaluation(experts, how)(x_TBD, logits_TBE[:, :, order]), rtol=0, atol=1e-6)


def test_a_token_of_one_expert_with_gate_one_is_a_per_token_ffn():
    torch.manual_seed(0)
    ffn = PerTokenFFN(num_tokens=3, token_dim=5, hidden_dim=7)
    experts = PerTokenExperts(num_tokens=3, num_experts=1, token_dim=5, hidden_dim=7)
    experts.load_state_dict(ffn.state_dict())
    x_TBD = torch.randn(3, 4, 5)
    torch.testing.assert_close(experts.dense(x_TBD, torch.ones(3, 4, 1)), ffn(x_TBD), rtol=0, atol=1e-6)


def test_dense_training_keeps_two_tensors_of_the_hidden_size():
    experts = PerTokenExperts(num_tokens=2, num_experts=4, token_dim=3, hidden_dim=50)
    kept = {}
    x_TBD, gates_TBE = torch.randn(2, 20, 3), torch.rand(2, 20, 4, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    )
    with hooks:
        output = experts.dense(x_TBD, gates_TBE)
    parameters = {p.untyped_storage().data_ptr() for p in experts.parameters()}
    values = sum(t.numel() for where, t in kept.items() if where not in parameters)
    assert values <= 2 * 2 * 20 * 4 * 50 + x_TBD.numel() + gates_TBE.numel()
    output.sum().backward()


@pytest.mark.parametrize("open_share", [0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("num_experts", [1, 3, 8])
def test_a_start_is_as_open_as_asked_and_as_large_as_a_per_token_ffn(num_experts, open_share):
    torch.manual_seed(0)
    router = ReLURouter(num_tokens=8, token_dim=64, num_experts=num_experts, open_share=open_share)
    experts = PerTokenExperts(num_tokens=8, num_experts=num_experts, token_dim=64, hidden_dim=32)
    ffn = PerTokenFFN(num_tokens=8, token_dim=64, hidden_dim=48)
    x_TBD = F.layer_norm(torch.randn(8, 512, 64), (64,))
    gates_TBE = router(x_TBD)
    # Seen over five seeds: off by up to 0.014; 0.93-1.05; 1.00-1.09.
    assert (gates_TBE > 0).float().mean().item() == pytest.approx(open_share, abs=0.03)
    assert gates_TBE.square().mean().item() * num_experts == pytest.approx(1.0, abs=0.15)
    ratio = experts.dense(x_TBD, gates_TBE).square().mean().sqrt() / ffn(x_TBD).square().mean().sqrt()
    assert ratio.item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_router_matches_reference(matches_reference, shape, dtype):
    rows, num_tokens, num_experts, token_dim, _ = shape
    torch.manual_seed(0)
    router = ReLURouter(num_tokens=num_tokens, token_dim=token_dim, num_experts=num_experts)
    nn.init.normal_(router.linear.bias)

    def gates(inputs, w):
        rows = inputs["x_TBD"].unbind(1)
        return torch.stack([reference.relu_gates(x_TD, w["linear.weight"], w["linear.bias"]) for x_TD in rows], dim=1)

    router.linear.bias.data[0] = 3.0  # no batch without any open gate
    x_TBD = torch.randn(num_tokens, rows, token_dim, dtype=torch.float64)
    matches_reference(router, gates, {"x_TBD": x_TBD}, dtype, TOLERANCE[dtype])


def test_sums_are_over_real_rows_whatever_padding_holds():
    gates_TBE = torch.tensor([[[1.0, 2.0], [0.0, 3.0], [float("nan"), 9.0]]], requires_grad=True)
    real_B = torch.tensor([True, True, False])
    sums_TE = sum_over_rows(gates_TBE, real_B)
    assert sums_TE.tolist() == [[1.0, 5.0]]
    sums_TE.sum().backward()
    assert gates_TBE.grad.tolist() == [[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]]
    assert sum_over_rows(gates_TBE.bfloat16() > 0, real_B).dtype == torch.float32


def test_bf16_experts_are_near_fp32():
    torch.manual_seed(0)
    experts = PerTokenExperts(num_tokens=3, num_experts=4, token_dim=32, hidden_dim=16)
    x_TBD, logits_TBE = torch.randn(3, 9, 32), torch.randn(3, 9, 4)
    right = Evaluation(experts, "dense")(x_TBD, logits_TBE)
    experts.bfloat16()
    for how in ("dense", "by_expert", "grouped"):
        output = Evaluation(experts, how)(x_TBD.bfloat16(), logits_TBE.bfloat16())
        assert output.dtype == torch.bfloat16
        # Seen: 0.012 on values up to 2.5.
        torch.testing.assert_close(output.float(), right, rtol=0, atol=0.05)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="num_experts 0 must be at least 1"):
        ReLURouter(num_tokens=2, token_dim=3, num_experts=0)
    with pytest.raises(ValueError, match="open_share 1 must lie between 0 and 1"):
        ReLURouter(num_tokens=2, token_dim=3, num_experts=2, open_share=1)
    with pytest.raises(ValueError, match="hidden_dim 0 must be at least 1"):
        PerTokenExperts(num_tokens=2, num_experts=2, token_dim=3, hidden_dim=0)
