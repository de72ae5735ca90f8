import subprocess
import sys

import pytest
import torch
from torch import nn

from rankmixer_dist.layers.dtsi_moe import DTSIMoE
from rankmixer_dist.layers.per_token_ffn import PerTokenFFN
from rankmixer_dist.layers.softmax_moe import SoftmaxTopKMoE
from rankmixer_dist.layers.stacked_linear import StackedLinear, keeping_part
from rankmixer_dist.layers.tokenizer import GroupTokenizer


def test_each_slice_is_its_own_linear_map():
    stacked = StackedLinear(count=3, in_dim=4, out_dim=5).double()
    x_NBI = torch.randn(3, 2, 4, dtype=torch.float64)
    expected = [x_BI @ stacked.weight[n] + stacked.bias[n] for n, x_BI in enumerate(x_NBI)]
    # Seen: 0; another BLAS may sum in another order.
    torch.testing.assert_close(stacked(x_NBI), torch.stack(expected), rtol=0, atol=1e-15)


def assert_starts_like_linear(weight: torch.Tensor, bias: torch.Tensor, fan_in: int, out_dim: int) -> None:
    twin = nn.Linear(fan_in, out_dim)
    # Seen over ten seeds: 0.6 % between two such draws.
    assert weight.std().item() == pytest.approx(twin.weight.std().item(), rel=0.02)
    assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
    # A few hundred draws; seen over ten seeds: 7 %.
    assert bias.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.2)
    assert bias.abs().max().item() <= fan_in**-0.5


def test_slices_start_like_independent_linear_layers():
    torch.manual_seed(0)
    stacked = StackedLinear(count=4, in_dim=256, out_dim=512)
    for weight, bias in zip(stacked.weight, stacked.bias, strict=True):
        assert_starts_like_linear(weight, bias, 256, 512)


def test_a_padded_slice_starts_by_its_true_width():
    torch.manual_seed(0)
    stacked = StackedLinear(count=2, in_dim=256, out_dim=512, fan_in=(256, 64))
    assert_starts_like_linear(stacked.weight[0], stacked.bias[0], 256, 512)
    assert_starts_like_linear(stacked.weight[1], stacked.bias[1], 64, 512)


def test_layers_built_on_it_start_like_linear_layers():
    torch.manual_seed(0)
    ffn = PerTokenFFN(num_tokens=3, token_dim=192, hidden_dim=384)
    tokenizer = GroupTokenizer(group_dims=(160, 320), group_tokens=(1, 1), token_dim=384)
    for t in range(3):
        assert_starts_like_linear(ffn.up.weight[t], ffn.up.bias[t], 192, 384)
        assert_starts_like_linear(ffn.down.weight[t], ffn.down.bias[t], 384, 192)
    for projection, width in zip(tokenizer.projections, (160, 320), strict=True):
        assert_starts_like_linear(projection.weight[0], projection.bias[0], width, 384)


def test_slices_are_drawn_independently():
    stacked = StackedLinear(count=2, in_dim=8, out_dim=8)
    assert not torch.equal(stacked.weight[0], stacked.weight[1])


@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_sizes_below_one_are_refused(sizes):
    count, in_dim, out_dim = sizes
    with pytest.raises(ValueError, match="at least 1"):
        StackedLinear(count=count, in_dim=in_dim, out_dim=out_dim)


@pytest.mark.parametrize("fan_in", [(4,), (4, 5), (0, 4)])
def test_a_fan_in_that_does_not_fit_is_refused(fan_in):
    with pytest.raises(ValueError, match="fan_in needs 2 values in 1..4"):
        StackedLinear(count=2, in_dim=4, out_dim=3, fan_in=fan_in)


def test_without_bias_and_with_a_smaller_start():
    torch.manual_seed(0)
    plain = StackedLinear(count=2, in_dim=3, out_dim=4, bias=False)
    torch.manual_seed(0)
    small = StackedLinear(count=2, in_dim=3, out_dim=4, bias=False, init_scale=0.25)
    assert [name for name, _ in plain.named_parameters()] == ["weight"]
    assert torch.equal(small.weight, 0.25 * plain.weight)
    x_NBI = torch.randn(2, 5, 3)
    # Seen: 0.
    expected = torch.stack([x_BI @ weight for x_BI, weight in zip(x_NBI, plain.weight, strict=True)])
    torch.testing.assert_close(plain(x_NBI), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("init_scale", [-1.0, float("inf"), float("nan")])
def test_an_impossible_scale_is_refused(init_scale):
    with pytest.raises(ValueError, match="init_scale"):
        StackedLinear(count=1, in_dim=1, out_dim=1, init_scale=init_scale)


SIZES = {"num_tokens": 8, "token_dim": 6, "hidden_dim": 5}
BUILDS = {
    "ffn": lambda: PerTokenFFN(**SIZES),
    "dtsi": lambda: DTSIMoE(**SIZES, num_experts=4),
    "softmax": lambda: SoftmaxTopKMoE(**SIZES, num_experts=4, top_k=2),
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("part", "parts"), [(0, 4), (2, 4), (3, 4), (0, 1)])
def test_a_kept_part_and_all_that_comes_after_it_are_drawn_as_in_the_whole(build, part, parts):
    torch.manual_seed(0)
    whole, after = BUILDS[build](), torch.rand(3)
    torch.manual_seed(0)
    with keeping_part(part, parts):
        kept = BUILDS[build]()
    assert torch.equal(torch.rand(3), after)
    for (name, expected), found in zip(whole.named_parameters(), kept.parameters(), strict=True):
        run = slice(part * len(expected) // parts, (part + 1) * len(expected) // parts)
        assert torch.equal(found[run], expected[run]), name


MEASURED = """
import resource, sys
from rankmixer_dist.layers.experts import PerTokenExperts
from rankmixer_dist.layers.stacked_linear import keeping_part
PerTokenExperts(num_tokens=1, num_experts=1, token_dim=8, hidden_dim=8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with keeping_part(3, int(sys.argv[1])):
    PerTokenExperts(num_tokens=8, num_experts=8, token_dim=512, hidden_dim=512)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is known to give memory when it is written to")
def test_what_is_not_kept_costs_no_memory():
    megabytes = 8 * 8 * 2 * 512 * 512 * 4 / 2**20
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, "8"], capture_output=True, text=True, check=True, timeout=120
    )
    # An eighth, and a slice in which the others are drawn; 17 MiB of 128 seen.
    assert float(ended.stdout) < 0.2 * megabytes
