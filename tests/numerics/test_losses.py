import math

import pytest
import torch

from rankmixer_dist.layers import reference
from rankmixer_dist.losses import multi_task_loss

TOLERANCE = {torch.float64: 1e-15, torch.float32: 2e-6}  # seen: 1.7e-16, 3.3e-7


def rows(count, tasks, dtype=torch.float64):
    torch.manual_seed(0)
    return (2 * torch.randn(count, tasks)).to(dtype), torch.randint(0, 2, (count, tasks)).float()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("count", "tasks"), [(4, 3), (1, 1)])
def test_matches_reference_with_its_gradient(count, tasks, dtype):
    logits_BK, labels_BK = rows(count, tasks, dtype)
    weights, task_weights = [1.0, 0.5, 2.0, 0.0][:count], [1.0, 0.3, 4.0][:tasks]
    logits_BK.requires_grad_()
    loss, per_task_K = multi_task_loss(logits_BK, labels_BK, torch.tensor(weights), torch.tensor(task_weights), 7.5)
    exact = logits_BK.detach().double().requires_grad_()
    # 0.3 as the fp32 task weight holds it.
    held = torch.tensor(task_weights).tolist()
    expected = reference.multi_task_loss(exact, labels_BK.double(), weights, held, 7.5)
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(loss.double(), expected, **tolerance)
    torch.testing.assert_close((per_task_K.double() * torch.tensor(held).double()).sum(), expected, **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits_BK)[0].double(), torch.autograd.grad(expected, exact)[0], **tolerance
    )


def test_the_shares_of_several_ranks_add_up_to_the_loss_of_the_whole_batch():
    logits_BK, labels_BK = rows(7, 2)
    weight_B, task_weights_K = torch.tensor([1.0, 1, 2, 1, 1, 0.5, 1]), torch.tensor([1.0, 2.0])
    whole, whole_K = multi_task_loss(logits_BK, labels_BK, weight_B, task_weights_K, 7.5)
    shares = [
        multi_task_loss(logits_BK[part], labels_BK[part], weight_B[part], task_weights_K, torch.tensor(7.5))
        for part in (slice(0, 3), slice(3, 7))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in shares), whole)
    torch.testing.assert_close(sum(per_task for _, per_task in shares), whole_K)


@pytest.mark.parametrize("huge", [1e30, -3e38, math.inf, -math.inf, math.nan])
def test_padding_rows_add_nothing_and_get_exactly_zero_gradient(huge):
    logits_BK, labels_BK = rows(4, 2, torch.float32)
    weight_B, task_weights_K = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0])
    kept = [0, 2]
    alone, alone_K = multi_task_loss(logits_BK[kept], labels_BK[kept], weight_B[kept], task_weights_K, 2.0)
    logits_BK[[1, 3]], labels_BK[3] = huge, math.nan
    logits_BK.requires_grad_()
    loss, per_task_K = multi_task_loss(logits_BK, labels_BK, weight_B, task_weights_K, 2.0)
    assert torch.equal(loss, alone)
    assert torch.equal(per_task_K, alone_K)
    (gradient,) = torch.autograd.grad(loss, logits_BK)
    assert (gradient[[1, 3]] == 0).all()
    assert (gradient[kept] != 0).all()


def test_an_unknown_label_adds_nothing_and_weighs_nothing():
    logits_BK, labels_BK = rows(4, 2)
    weight_B, task_weights_K = torch.tensor([1.0, 1.0, 0.5, 1.0]), torch.tensor([1.0, 2.0])
    _, known_K = multi_task_loss(logits_BK[1:], labels_BK[1:], weight_B[1:], task_weights_K, 3.5)
    _, all_K = multi_task_loss(logits_BK, labels_BK, weight_B, task_weights_K, 3.5)
    labels_BK[0, 1] = math.nan
    logits_BK.requires_grad_()
    loss, per_task_K = multi_task_loss(logits_BK, labels_BK, weight_B, task_weights_K, 3.5)
    torch.testing.assert_close(per_task_K, torch.stack([all_K[0], known_K[1]]), rtol=1e-15, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits_BK)
    assert gradient[0, 1] == 0
    assert (gradient.flatten()[[0, 2, 3, 4, 5, 6, 7]] != 0).all()


def test_huge_logits_of_real_rows_stay_finite():
    logits_BK = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss, _ = multi_task_loss(logits_BK, torch.tensor([[0.0], [1.0]]), torch.ones(2), torch.ones(1), 2.0)
    assert loss.item() == 1e4
    assert torch.autograd.grad(loss, logits_BK)[0].tolist() == [[0.5], [-0.5]]


def test_bf16_logits_are_summed_in_fp32():
    loss, per_task_K = multi_task_loss(
        torch.zeros(1000, 1, dtype=torch.bfloat16), torch.zeros(1000, 1), torch.ones(1000), torch.ones(1), 1000.0
    )
    assert loss.dtype == per_task_K.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
