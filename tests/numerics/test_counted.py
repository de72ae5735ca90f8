"""Parameters and FLOPs by part, counted on the meta device, are what a pass with values really does."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.cost import DenseCost
from rankmixer_dist.embedded import Embedded, Events
from rankmixer_dist.errors import UserError
from rankmixer_dist.layers.dtsi_moe import DTSIMoE
from rankmixer_dist.layers.softmax_moe import SoftmaxTopKMoE
from rankmixer_dist.models.counted import count, count_part
from rankmixer_dist.models.features import FieldSpec, GroupSpec, NumericSpec, SequenceSpec
from rankmixer_dist.models.hiformer import Hiformer
from rankmixer_dist.models.mixture import DTSI
from rankmixer_dist.models.ranker import Ranker, build_ranker
from rankmixer_dist.models.rankmixer import RankMixer

ROWS = 6
MOE = {"num_tokens": 3, "token_dim": 9, "num_experts": 4, "hidden_dim": 5}


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def row(num_tokens, token_dim):
    return torch.empty(1, num_tokens, token_dim, device="meta", requires_grad=True)


def ranker(**changes) -> Ranker:
    sizes = {
        "fields": [FieldSpec("user", 8), FieldSpec("item", 6)],
        "sequences": [
            SequenceSpec("watched", 6, 5, query="item", attention_hidden=(7, 3)),
            SequenceSpec("clicked", 6, 5, query="item", attention_hidden=(7,)),
            SequenceSpec("liked", 6, 4, pooling="mean"),
        ],
        "numerics": [NumericSpec("age", 0.0, 1.0)],
        "groups": [GroupSpec("a", 2, ("user", "watched", "clicked")), GroupSpec("b", 1, ("item", "age", "liked"))],
        "token_dim": 12,
        "options": {"num_blocks": 2, "hidden_dim": 20},
        "base_rates": (0.5, 0.5),
        "head_hidden": (4,),
    }
    return build_ranker(**(sizes | changes))


def flops_of_a_pass(model: Ranker) -> int:
    vectors = {"user": leaf(ROWS, 8), "item": leaf(ROWS, 6)}
    longest = {"watched": 5, "clicked": 5, "liked": 4}
    events = {name: Events(leaf(ROWS * n, 6), torch.arange(ROWS + 1) * n) for name, n in longest.items()}
    with FlopCounterMode(display=False) as counter:
        scored = model(Embedded(vectors, events), torch.zeros(ROWS, 1))
        if model.training:
            torch.stack([scored.logits_BK, *scored.stages]).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokenizer": "chunk", "num_tokens": 3},
        {"tokenizer": "auto_split", "tokenizer_hidden": 5},
        {"backbone": "tokenmixer_large", "options": {"num_blocks": 5}, "auxiliary": True},
        {"options": {"num_blocks": 2, "hidden_dim": 5, "moe": DTSI(num_experts=4, active_ratio=1.0)}},
    ],
)
def test_the_parts_are_all_that_a_pass_with_values_does(changes):
    model = ranker(**changes)
    cost = count(model)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.flops_per_row_train * ROWS == flops_of_a_pass(model)
    if "moe" not in changes.get("options", {}):
        assert cost.flops_per_row_forward * ROWS == flops_of_a_pass(model.eval())
    parts = cost.breakdown()
    auxiliary = ["auxiliary heads"] if changes.get("auxiliary") else []
    pooled = ["pooling.watched", "pooling.clicked", "pooling.liked"]
    assert list(parts) == [*pooled, "tokenizer", "backbone", "heads", *auxiliary]
    assert parts["tokenizer"]["parameters"] == sum(p.numel() for p in model.tokenizer.parameters())
    # The first layer of DIN's unit: D F a row and 2 D F a key.
    assert parts["pooling.clicked"]["flops_per_row_forward"] == 2 * (6 * 7 + 5 * (2 * 6 * 7 + 7))
    assert parts["pooling.liked"] == {"parameters": 0, "flops_per_row_forward": 0, "flops_per_row_train": 0}


def test_sequences_count_at_the_mean_length_that_was_measured():
    def flops(events_per_row):
        return count(ranker(), events_per_row).breakdown()["pooling.clicked"]["flops_per_row_forward"]

    assert flops({"clicked": 5.0, "other": 1.0}) == flops(None)
    assert flops({"clicked": 2.4}) == 2 * (6 * 7 + 2 * (2 * 6 * 7 + 7))
    assert flops({"clicked": 0.1}) == 2 * 6 * 7


def test_counting_leaves_everything_as_it_was():
    options = {"num_blocks": 2, "hidden_dim": 5, "moe": DTSI(num_experts=4, active_ratio=0.5)}
    model = ranker(options=options).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    count(model)
    assert torch.equal(torch.get_rng_state(), generator)  # the fusion draws
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_the_dtype_and_the_device_change_nothing():
    with torch.device("meta"):
        weightless = ranker()
    assert count(weightless) == count(ranker()) == count(ranker().double())
    assert count(ranker(part=(1, 3))) == count(ranker())  # as a rank builds it that is to keep one of three tokens


def test_the_papers_formula_is_the_leading_term():
    with torch.device("meta"):
        model = RankMixer(num_tokens=16, token_dim=768, num_blocks=2, hidden_dim=3 * 768)
    part = count_part("backbone", model, row(16, 768))
    # Eq. 12 at k = 3: 2kLTD^2 parameters and twice that FLOPs, biases and norms apart.
    assert part.parameters == pytest.approx(2 * 3 * 2 * 16 * 768**2, rel=0.002)
    assert part.flops_per_row_forward == 4 * 3 * 2 * 16 * 768**2
    assert part.flops_per_row_train == 3 * part.flops_per_row_forward


def test_table_3_at_the_papers_size():
    """ΔParams and ΔFLOPs over token mixing, at the k that 107 M parameters imply."""
    sizes = {"num_tokens": 16, "token_dim": 768, "num_blocks": 2, "hidden_dim": round(2.83 * 768)}
    with torch.device("meta"):
        mixer = count_part("", RankMixer(**sizes), row(16, 768))
        for mixing, parameters, flops in (
            ("concat_mlp", 0.0, 0.0),
            ("share", 0.0, 0.0),
            ("self_attention", 0.044, 0.718),  # the paper reports .16 and .718
        ):
            part = count_part("", RankMixer(**sizes, mixing=mixing), row(16, 768))
            assert part.parameters / mixer.parameters - 1 == pytest.approx(parameters, abs=0.005)
            assert part.flops_per_row_forward / mixer.flops_per_row_forward - 1 == pytest.approx(flops, abs=0.005)


def test_a_low_rank_pays_at_the_size_that_the_docstring_names():
    sizes = {"num_tokens": 16, "token_dim": 768, "num_blocks": 1, "num_heads": 8}
    with torch.device("meta"):
        full, low = (sum(p.numel() for p in Hiformer(**sizes, rank=r).parameters()) for r in (None, 256))
    assert full - low == 3 * (16 * 768) ** 2 - 3 * 256 * 2 * 16 * 768
    assert full == pytest.approx(453e6 + 16 * (1 + 8) * 768**2, rel=0.001)


def with_values(moe, *, trains):
    """FLOPs and the report of a pass whose gates have values, so that the sparse path finds some of them closed."""
    x_TBD = leaf(MOE["num_tokens"], ROWS, MOE["token_dim"])
    with FlopCounterMode(display=False) as counter:
        y_TBD, report = moe.train(trains)(x_TBD)
        if trains:
            y_TBD.sum().backward()
    return counter.get_total_flops(), report


@pytest.mark.parametrize("fusion", ["stochastic_rows", "stochastic_steps", "mean", "straight_through"])
def test_dtsi_is_counted_as_it_is_served(fusion):
    torch.manual_seed(0)
    moe = DTSIMoE(**MOE, fusion=fusion)
    served, report = with_values(moe, trains=False)
    moe.active_ratio = report.active_T.mean().item()
    assert 0 < moe.active_ratio < 1
    part = count_part("", moe, row(3, 9).transpose(0, 1))
    assert part.parameters == sum(p.numel() for p in moe.parameters())
    assert part.flops_per_row_forward * ROWS == pytest.approx(served, abs=ROWS)  # the ratio is rounded, per row
    assert part.flops_per_row_train * ROWS == with_values(moe, trains=True)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 3, "sparse_training": True},
        {"top_k": 2, "shared_expert": True},
        {"top_k": 4, "shared_expert": True, "sparse_training": True},
    ],
)
def test_softmax_is_counted_as_it_is_computed(options):
    moe = SoftmaxTopKMoE(**MOE, **options)
    part = count_part("", moe, row(3, 9).transpose(0, 1))
    assert part.parameters == sum(p.numel() for p in moe.parameters())
    assert part.flops_per_row_forward * ROWS == with_values(moe, trains=False)[0]
    assert part.flops_per_row_train * ROWS == with_values(moe, trains=True)[0]


def test_serving_at_an_eighth_costs_about_an_eighth():
    sizes = {"num_tokens": 16, "token_dim": 768, "hidden_dim": 256}
    with torch.device("meta"):
        full, eighth = (
            count_part("", DTSI(num_experts=8, active_ratio=ratio).build(**sizes), row(16, 768).transpose(0, 1))
            for ratio in (1.0, 1 / 8)
        )
    assert full.parameters == eighth.parameters and full.flops_per_row_train == eighth.flops_per_row_train
    assert eighth.flops_per_row_forward / full.flops_per_row_forward == pytest.approx(1 / 8, rel=0.05)


def test_a_backbone_of_a_strangers_needs_no_cost_code():
    class Strange(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(12, 5))

        def forward(self, x_BTD):
            scores_BTT = torch.nn.functional.softmax(x_BTD @ x_BTD.mT, dim=2)
            return torch.einsum("btu,bud,de->be", scores_BTT, x_BTD, self.weight)

    part = count_part("backbone", Strange(), row(3, 12))
    x_BTD = leaf(ROWS, 3, 12)
    with FlopCounterMode(display=False) as counter:
        Strange()(x_BTD).sum().backward()
    assert part.flops_per_row_train * ROWS == counter.get_total_flops()
    assert DenseCost((part,)).parameters == 60


def test_the_numbers_of_a_plan_need_no_torch():
    code = "import sys, rankmixer_dist.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Reads(torch.nn.Module):
    """A part whose forward pass does something with its input."""

    def __init__(self, does):
        super().__init__()
        self.does, self.weight = does, torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.does(self.weight(x))


@pytest.mark.parametrize(
    "does",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x.nonzero()[:, 0]],
        lambda x: x[x > 0],
        lambda x: x * x.detach().numpy().sum(),
        lambda x: x * x.detach().tolist()[0][0][0],
        lambda x: x * torch.tensor([1, 0, 1, 0]),
    ],
)
def test_a_part_that_reads_values_is_refused_in_one_line_that_names_its_own(does):
    with pytest.raises(UserError, match=r"^backbone: its FLOPs cannot be counted: (.*), line (\d+), does") as refused:
        count_part("backbone", Reads(does), row(3, 4))
    assert f": test_counted.py, line {does.__code__.co_firstlineno}, does not run" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_mistake_that_is_not_about_values_keeps_its_traceback():
    with pytest.raises(AttributeError):
        count_part("backbone", Reads(lambda x: x.no_such_thing), row(3, 4))
