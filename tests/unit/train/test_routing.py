"""Draws that depend on the row alone, and counts that add up over ranks."""

import pytest
import torch

from rankmixer_dist.layers.dtsi_moe import DTSIMoE
from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.train.routing import drawn
from rankmixer_dist.train.routing_counts import RoutingCounts


def test_a_row_is_drawn_alike_wherever_it_lies():
    rows = torch.randint(-(2**63), 2**63 - 1, (1000,))
    order = torch.randperm(1000)
    together = drawn(rows, 1, 7, 0.5)
    assert torch.equal(drawn(rows[order], 1, 7, 0.5), together[order])
    assert torch.equal(torch.cat([drawn(part, 1, 7, 0.5) for part in rows.split(300)]), together)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_draws_are_fair_and_differ_between_rows_steps_and_seeds(share):
    def near(expected, draws):
        return pytest.approx(expected, abs=5 * (expected * (1 - expected) / draws) ** 0.5)

    rows = torch.arange(40_000)
    first = drawn(rows, 1, 1, share)
    assert first.double().mean().item() == near(share, 40_000)
    for other in (
        drawn(rows, 1, 2, share),
        drawn(rows, 2, 1, share),
        drawn(rows + 1, 1, 1, share),
        drawn(rows, 1, 1 << 40, share),
    ):
        assert (first & other).double().mean().item() == near(share**2, 40_000)
    stepwise = torch.stack([drawn(torch.zeros(3, dtype=torch.int64), 1, step, share) for step in range(4000)])
    assert (stepwise == stepwise[:, :1]).all()
    assert stepwise[:, 0].double().mean().item() == near(share, 4000)


def test_counts_of_a_batch():
    torch.manual_seed(0)
    layers = [DTSIMoE(num_tokens=3, token_dim=5, num_experts=4, hidden_dim=2) for _ in range(2)]
    layers[1].infer_router.linear.bias.data[2, 1] = -100.0
    counts = RoutingCounts(layers)
    real_B = torch.tensor([True] * 6 + [False] * 2)
    gates = []
    for _ in range(2):
        x_TBD = torch.randn(3, 8, 5)
        counts.add(counts.of([layer(x_TBD, RoutedRows(real_B, real_B))[1] for layer in layers]))
        gates.append(torch.stack([layer.infer_router(x_TBD[:, :6]) for layer in layers]).detach())
    gates_LTBE = torch.cat(gates, dim=2)
    figures = counts.figures()
    open_LTBE = gates_LTBE > 0
    assert figures["active_ratio"] == pytest.approx(open_LTBE.double().mean().item(), rel=1e-12)
    assert figures["active"]["1.2"] == pytest.approx(open_LTBE[1, 2].double().mean().item(), rel=1e-12)
    assert figures["gate_scale"] == pytest.approx(gates_LTBE[open_LTBE].double().mean().item(), rel=1e-6)
    assert figures["dead_experts"] == (open_LTBE.sum(dim=2) == 0).sum() >= 1
    counts.clear()
    assert counts.figures() == {}
