"""A backbone past its seams in pieces and around them, in a group of one, is the backbone."""

import pytest
import torch

from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.models.backbones import build_backbone
from rankmixer_dist.models.mixture import DTSI
from rankmixer_dist.parallel.expert_groups import ExpertGrid
from rankmixer_dist.parallel.token_parallel import check_spreadable, spread, traffic_of

SIZES = {"num_tokens": 4, "token_dim": 8, "hidden_dim": 6}
BACKBONES = [
    {"name": "rankmixer", "num_blocks": 2},
    {"name": "rankmixer", "num_blocks": 3, "moe": DTSI(num_experts=3, active_ratio=0.5), "norm": "pre"},
    {"name": "tokenmixer_large", "num_blocks": 5, "down_init": 1.0},
]
ALONE = ExpertGrid(size=1, position=0, data_size=1)


def built(options):
    torch.manual_seed(0)
    return build_backbone(**SIZES, **options).double()


@pytest.mark.parametrize("options", BACKBONES, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize(("mode", "pieces"), [("token", 1), ("token", 2), ("token", 3), ("plain", 1)])
@pytest.mark.parametrize("rows", [5, 2, 0])
@pytest.mark.parametrize("trains", [True, False])
def test_any_way_past_the_seams_is_the_same(options, mode, pieces, rows, trains):
    whole, part = built(options).train(trains), built(options).train(trains)
    traffic = spread(part, ALONE, mode, pieces)
    assert traffic_of(torch.nn.Sequential(part)) is traffic and traffic_of(whole) is None
    x_BTD = torch.randn(rows, 4, 8, dtype=torch.float64)
    told = RoutedRows(torch.arange(rows) != 1, torch.arange(rows) % 2 == 0)
    expected, found = whole(x_BTD, told), part(x_BTD, told)
    assert len(found.stages) == (whole.num_auxiliary if trains else 0)
    assert len(found.routing) == (3 if "moe" in options else 0)
    # Seen: 2.2e-16 in the vectors, 8.9e-16 in the reports, 1.3e-15 in the gradients.
    torch.testing.assert_close(found.out_BD, expected.out_BD, rtol=0, atol=2e-15)
    torch.testing.assert_close(found.stages, expected.stages, rtol=0, atol=2e-15)
    for report, right in zip(found.routing, expected.routing, strict=True):
        torch.testing.assert_close(vars(report), vars(right), rtol=0, atol=8e-15)
    expected.out_BD.square().sum().backward()
    found.out_BD.square().sum().backward()
    for weight, right in zip(part.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, right.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "rankmixer", "num_blocks": 1, "mixing": "none"}, "with mixing 'heads', not with 'none'; use expert"),
        ({"name": "rankmixer", "num_blocks": 1, "num_heads": 2, "skip": False}, "a num_heads that is not the number"),
        ({"name": "rankmixer", "num_blocks": 1, "shared_ffn": True}, "leave shared_ffn out"),
        (
            {"name": "tokenmixer_large", "num_heads": 2},
            "a num_heads that is not the number of tokens; use expert size 1",
        ),
        ({"name": "hiformer"}, "only rankmixer, tokenmixer_large and what else names its seams"),
        ({"name": "rankmixer", "num_blocks": 1}, "expert size 3 does not divide the 4 tokens; use one of 1, 2, 4"),
    ],
)
def test_what_cannot_be_spread_is_one_line(options, words):
    with pytest.raises(ValueError, match=words):
        check_spreadable(built(options), 3)
