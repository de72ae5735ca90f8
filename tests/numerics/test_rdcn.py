import math

import pytest
import torch
import torch.nn.functional as F

from rankmixer_dist.layers.cross import AttentionCrossLayer, CrossLayer
from rankmixer_dist.layers.reference import crosses as reference
from rankmixer_dist.models.rdcn import RDCN

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5}  # seen: 1.4e-14, 2.7e-6

OPTIONS = [
    {"rank": 4, "slot_dim": 1, "temperature": 1.0},
    {"rank": 4, "slot_dim": 2, "temperature": 0.3},
    {"rank": 1, "plain_cross": False},
    {"rank": 3, "slot_dim": 3, "hidden_dims": ()},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rows", "num_tokens", "token_dim"), [(3, 3, 5), (1, 3, 5), (2, 1, 4)])
def test_backbone_matches_reference(matches_reference, rows, num_tokens, token_dim, options, dtype):
    torch.manual_seed(0)
    options = {"num_layers": 2, "hidden_dims": (6, 3), **options}
    slot_dim, temperature = options.get("slot_dim", 1), options.get("temperature", 1.0)
    model = RDCN(num_tokens=num_tokens, token_dim=token_dim, **options)
    x_BTD = torch.randn(rows, num_tokens, token_dim, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.attention_cross.layers:
            layer.down.weight.normal_(0, 0.5)  # away from the uniform attention of small scores
    matches_reference(
        model,
        lambda inputs, weights: reference.rdcn(inputs["x_BTD"], weights, 2, slot_dim, temperature),
        {"x_BTD": x_BTD},
        dtype,
        TOLERANCE[dtype],
    )
    assert model(x_BTD.to(dtype)).out_BD.shape == (rows, model.out_dim)


def test_the_attention_is_torchs():
    torch.manual_seed(0)
    layer = AttentionCrossLayer(width=9, rank=6, slot_dim=2, temperature=0.5).double()
    x0_BW, x_BW = torch.randn(2, 4, 9, dtype=torch.float64)
    query, key, value = (part.unflatten(1, (3, 2)) for part in layer.down(x_BW).chunk(3, dim=1))
    attended = F.scaled_dot_product_attention(query, key, value, scale=1 / (0.5 * math.sqrt(2))) + value
    # Seen: 2.2e-16 on values up to 2.8.
    torch.testing.assert_close(layer(x0_BW, x_BW), x0_BW * layer.up(attended.flatten(1)) + x_BW, rtol=0, atol=2e-15)


def test_where_slots_attend_only_to_themselves_it_is_the_plain_cross():
    # A is the identity, and the skip then doubles the values.
    attending = AttentionCrossLayer(width=3, rank=2, slot_dim=1, temperature=1e-3).double()
    plain = CrossLayer(width=3, rank=2).double()
    x_BW = torch.tensor([[1.0, -1.0, 0.7]], dtype=torch.float64)
    with torch.no_grad():
        values_RW = plain.down.weight
        signs_RW = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)  # q = k = (1, -1)
        attending.down.weight.copy_(torch.cat([signs_RW, signs_RW, values_RW / 2]))
        attending.up.load_state_dict(plain.up.state_dict())
    # Seen: 0.
    torch.testing.assert_close(attending(x_BW, x_BW), plain(x_BW, x_BW), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"rank 64 must lie in 1\.\.6"),
        ({"rank": 4, "slot_dim": 3}, "rank 4 is not a multiple of slot_dim 3"),
        ({"rank": 4, "slot_dim": 0}, "slot_dim 0 must be at least 1"),
        ({"rank": 4, "temperature": 0.0}, "temperature 0.0 must be finite and above 0"),
        ({"rank": 4, "temperature": math.nan}, "temperature nan must be finite and above 0"),
        ({"rank": 4, "num_layers": 0}, "num_layers 0 must be at least 1"),
        ({"rank": 4, "hidden_dims": (3, 0)}, r"hidden_dims \[3, 0\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RDCN(num_tokens=2, token_dim=3, **options)
