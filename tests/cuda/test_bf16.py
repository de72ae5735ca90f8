"""bf16 against the reference, by the comparison that tests/numerics makes for every layer where there is a GPU."""

import pytest
import torch

from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.reference.rankmixer import rankmixer
from rankmixer_dist.models.rankmixer import RankMixer
from tests.numerics.test_moe_layers import Evaluation, expected, with_closed_gates
from tests.reference_errors import DEVICES, bf16_errors, device_or_skip


@pytest.mark.parametrize("name", DEVICES)
def test_a_backbone_in_bf16_is_as_near_to_its_reference_as_on_the_cpu(name):
    device = device_or_skip(name)
    torch.manual_seed(0)
    model = RankMixer(num_tokens=4, token_dim=16, num_blocks=2, hidden_dim=32)
    inputs = {"x_BTD": torch.randn(8, 4, 16, dtype=torch.float64)}
    ours, theirs = bf16_errors(model, lambda given, w: rankmixer(given["x_BTD"], w, 2, "post"), inputs, device)
    assert ours <= 3 * theirs
    assert 1e-3 < theirs < 0.1  # seen: 0.015; a comparison that rounds nothing compares nothing


@pytest.mark.parametrize("name", DEVICES)
def test_grouped_products_in_bf16_are_as_near_to_their_reference_as_on_the_cpu(name):
    device = device_or_skip(name)
    torch.manual_seed(0)
    experts = PerTokenExperts(num_tokens=3, num_experts=4, token_dim=16, hidden_dim=32)
    logits_TBE = with_closed_gates(torch.randn(3, 5, 4, dtype=torch.float64))
    logits_TBE[:, :, 2] = -1.0  # one expert number that no token uses
    inputs = {"x_TBD": torch.randn(3, 5, 16, dtype=torch.float64), "logits_TBE": logits_TBE}
    ours, theirs = bf16_errors(Evaluation(experts, "grouped"), expected, inputs, device)
    assert ours <= 3 * theirs
    assert 1e-3 < theirs < 0.1


def test_the_weights_of_the_module_given_stay_as_they_are():
    model = RankMixer(num_tokens=2, token_dim=4, num_blocks=1, hidden_dim=4)
    inputs = {"x_BTD": torch.randn(2, 2, 4, dtype=torch.float64)}
    bf16_errors(model, lambda given, w: rankmixer(given["x_BTD"], w, 1, "post"), inputs, torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
