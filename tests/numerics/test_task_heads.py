import pytest
import torch

from rankmixer_dist.layers import reference
from rankmixer_dist.layers.task_heads import TaskHeads

TOLERANCE = {torch.float64: 3e-15, torch.float32: 2e-6}  # seen: 3.5e-16, 2.1e-7


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hidden_dims", [(), (7,), (4, 3)])
@pytest.mark.parametrize("rows", [1, 3])
def test_matches_reference(matches_reference, rows, hidden_dims, dtype):
    torch.manual_seed(0)
    matches_reference(
        TaskHeads(in_dim=5, num_tasks=3, hidden_dims=hidden_dims),
        lambda inputs, w: reference.task_heads(
            inputs["pooled_BD"],
            [(w[f"layers.{i}.weight"], w[f"layers.{i}.bias"]) for i in range(len(hidden_dims) + 1)],
        ),
        {"pooled_BD": torch.randn(rows, 5, dtype=torch.float64)},
        dtype,
        TOLERANCE[dtype],
    )


def test_a_featureless_row_starts_at_the_base_rates():
    rates = [0.5, 0.02, 0.9]
    logits_BK = TaskHeads(in_dim=4, num_tasks=3, base_rates=rates)(torch.zeros(2, 4))
    torch.testing.assert_close(logits_BK.sigmoid(), torch.tensor([rates, rates]))


def test_bf16_parameters_give_fp32_logits_that_tell_near_scores_apart():
    torch.manual_seed(0)
    heads = TaskHeads(in_dim=64, num_tasks=1).bfloat16()
    logits_BK = heads(torch.randn(64) + 1e-4 * torch.randn(500, 64))
    assert logits_BK.dtype == torch.float32
    assert len(logits_BK.unique()) > 450
    assert len(logits_BK.bfloat16().unique()) < 10  # what bf16 would have left


@pytest.mark.parametrize("rates", [[0.5], [0.5, 0.0], [0.5, 1.0]])
def test_impossible_base_rates_are_refused(rates):
    with pytest.raises(ValueError, match="base_rates needs 2 values between 0 and 1"):
        TaskHeads(in_dim=4, num_tasks=2, base_rates=rates)
