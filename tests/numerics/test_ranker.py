import math
from itertools import accumulate

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.embedded import Embedded, Events
from rankmixer_dist.layers import reference
from rankmixer_dist.layers.reference.rankmixer import rankmixer
from rankmixer_dist.models.backbones import backbone_class
from rankmixer_dist.models.counted import count
from rankmixer_dist.models.features import Features, FieldSpec, GroupSpec, NumericSpec, SequenceSpec
from rankmixer_dist.models.ranker import Ranker, build_ranker
from tests.numerics.test_backbone_contract import every_case

TOLERANCE = {torch.float64: 8e-15, torch.float32: 3e-6}  # seen: 9.0e-16, 3.6e-7

MEAN, STD = {"age": 30.0, "price": 2.0, "speed": 0.0}, {"age": 8.0, "price": 0.5, "speed": 1.0}
SPECS = {
    "fields": [FieldSpec("user", 5), FieldSpec("item", 4)],
    "sequences": [
        SequenceSpec("watched", 4, 3, query="item", attention_hidden=(6, 3)),
        SequenceSpec("keys", 2, 4, pooling="mean"),  # a name that an nn.ModuleDict would refuse
    ],
    "numerics": [NumericSpec(name, MEAN[name], STD[name]) for name in MEAN],
    "groups": [
        GroupSpec("who", 2, ("user", "price", "speed")),
        GroupSpec("history", 1, ("watched", "keys")),
        GroupSpec("what", 1, ("age", "item")),
    ],
}
SIZES = {"token_dim": 8, "options": {"num_blocks": 2, "hidden_dim": 6}, "base_rates": (0.5, 0.1, 0.3)}
LENGTHS = {"watched": [3, 0, 3], "keys": [0, 4, 2]}


def build(**changes) -> Ranker:
    torch.manual_seed(0)
    return build_ranker(**{**SPECS, **SIZES, **changes})


def batch(dtype):
    torch.manual_seed(1)
    shapes = {"user": (3, 5), "item": (3, 4), "watched": (6, 4), "keys": (6, 2)}
    embeddings = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    # Exact in binary, so that both dtypes see the same numbers.
    numerics_BN = torch.tensor([[31.5, 2.25, math.nan], [math.nan, 1.5, -1.0], [12.0, 99.0, 0.5]], dtype=dtype)
    return embeddings, numerics_BN


def embedded(embeddings):
    """The embeddings, of which those of sequences have rows of `LENGTHS`."""
    events = {}
    for name, lengths in LENGTHS.items():
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=embeddings[name].device)
        events[name] = Events(embeddings[name], offsets)
    return Embedded({name: x for name, x in embeddings.items() if name not in LENGTHS}, events)


def reference_ranker(x, numerics_BN, w):
    unit = [(w[f"poolings.0.{n}.weight"], w[f"poolings.0.{n}.bias"]) for n in ("first", "hidden.0", "score")]
    watched = reference.target_attention(x["item"], x["watched"], LENGTHS["watched"], unit)
    keys = reference.mean_pooling(x["keys"], LENGTHS["keys"])
    z = reference.normalize_numerics(numerics_BN, list(MEAN.values()), list(STD.values()), 5.0)
    age, price, speed = z[:, 0:2], z[:, 2:4], z[:, 4:6]
    x_BW = torch.cat([x["user"], price, speed, watched, keys, age, x["item"]], dim=1)
    # Group widths 9, 6, 6: bucket 0 holds the tokens of the last two groups, bucket 1 those of the first.
    narrow, wide = w["tokenizer.projections.0.weight"], w["tokenizer.projections.1.weight"]
    biases = torch.cat([w["tokenizer.projections.1.bias"], w["tokenizer.projections.0.bias"]])
    tokens_BTD = reference.tokenize(x_BW, (9, 6, 6), (2, 1, 1), [*wide, *narrow], biases)
    backbone = {n.removeprefix("backbone."): p for n, p in w.items() if n.startswith("backbone.")}
    pooled_BD = rankmixer(tokens_BTD, backbone, 2, "post")
    return reference.task_heads(pooled_BD, [(w["heads.layers.0.weight"], w["heads.layers.0.bias"])])


class FlatInputs(torch.nn.Module):
    """A ranker that takes its embeddings as keyword arguments, for `matches_reference`."""

    def __init__(self, ranker, numerics_BN):
        super().__init__()
        self.ranker, self.numerics_BN = ranker, numerics_BN

    def forward(self, **embeddings):
        return self.ranker(embedded(embeddings), self.numerics_BN.to(embeddings["user"].device))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_matches_reference(matches_reference, dtype):
    embeddings, numerics_BN = batch(torch.float64)
    matches_reference(
        FlatInputs(build(), numerics_BN.to(dtype)),
        lambda inputs, weights: reference_ranker(
            inputs, numerics_BN, {name.removeprefix("ranker."): w for name, w in weights.items()}
        ),
        embeddings,
        dtype,
        TOLERANCE[dtype],
    )


def test_bf16_parameters_take_fp32_embeddings_and_give_fp32_logits_and_gradients():
    embeddings, numerics_BN = batch(torch.float32)
    ranker = build()
    exact = ranker(embedded(embeddings), numerics_BN).logits_BK
    embeddings["item"].requires_grad_()
    logits_BK = ranker.bfloat16()(embedded(embeddings), numerics_BN).logits_BK
    assert logits_BK.dtype == torch.float32
    # Seen: 0.0068.
    torch.testing.assert_close(logits_BK, exact, rtol=0, atol=0.05)
    assert torch.autograd.grad(logits_BK.sum(), embeddings["item"])[0].dtype == torch.float32


def test_numerics_are_normalised_before_the_cast_to_bf16():
    numerics = [NumericSpec("age", 1_000_000.0, 1.0), *SPECS["numerics"][1:]]
    embeddings, numerics_BN = batch(torch.float32)
    ranker = build(numerics=numerics).bfloat16()
    logits = []
    for age in (1_000_000.0, 1_000_001.0):
        numerics_BN[:, 0] = age
        logits.append(ranker(embedded(embeddings), numerics_BN).logits_BK)
    assert (logits[0] - logits[1]).abs().amax(dim=1).min() > 1e-3


def test_a_groups_numerics_that_follow_one_another_in_both_orders_are_read_as_one_slice():
    features = Features(
        fields=[FieldSpec("user", 4)],
        sequences=[],
        numerics=SPECS["numerics"],
        groups=[GroupSpec("a", 1, ("speed", "user")), GroupSpec("b", 1, ("age", "price"))],
    )
    assert features.columns() == [[slice(4, 6), "user"], [slice(0, 4)]]
    assert features.group_dims() == [6, 4]


def test_every_parameter_learns():
    embeddings, numerics_BN = batch(torch.float32)
    ranker = build(options={"num_blocks": 2, "hidden_dim": 6, "norm": "pre"}, head_hidden=(5,))
    ranker(embedded(embeddings), numerics_BN).logits_BK.square().sum().backward()
    assert [name for name, p in ranker.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_same_seed_gives_the_same_model():
    for a, b in zip(build().parameters(), build().parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": [*SPECS["fields"], FieldSpec("item", 4)]}, "'item' is declared twice"),
        ({"fields": [*SPECS["fields"], FieldSpec("extra", 4)]}, "'extra' is in no group"),
        (
            {"groups": [*SPECS["groups"], GroupSpec("g", 4, ("itme",))]},
            "'itme', which is no feature; known: user, item",
        ),
        ({"groups": [*SPECS["groups"], GroupSpec("g", 4, ("item",))]}, "'item' is a member of a group twice"),
        ({"groups": [*SPECS["groups"], GroupSpec("g", 4, ())]}, "group 'g' has no members"),
        ({"sequences": [SequenceSpec("watched", 4, 3, query="age"), SPECS["sequences"][1]]}, "'age' is not a field"),
        ({"sequences": [SequenceSpec("watched", 4, 3, query="user"), SPECS["sequences"][1]]}, "width 4 but its query"),
        ({"sequences": [SequenceSpec("watched", 4, 3), SPECS["sequences"][1]]}, "target_attention needs a `query`"),
        ({"token_dim": 10}, "not a multiple of the 4 tokens"),
        ({"base_rates": (0.5, 0.0)}, "between 0 and 1"),
    ],
)
def test_mistakes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@every_case
@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer": "chunk", "num_tokens": 3, "global_token": True}])
def test_every_backbone_scores_the_same_tokens(name, num_tokens, token_dim, options, bf16, tokenizer):
    ranker = build(backbone=name, token_dim=token_dim, options=options, auxiliary=True, **tokenizer)
    assert ranker.tokenizer.num_tokens == num_tokens
    assert type(ranker.backbone) is backbone_class(name)
    embeddings, numerics_BN = batch(torch.float32)
    for values in embeddings.values():
        values.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        scored = ranker(embedded(embeddings), numerics_BN)
        torch.stack([scored.logits_BK, *scored.stages]).square().sum().backward()
    assert scored.logits_BK.shape == (3, 3) and len(scored.stages) == ranker.backbone.num_auxiliary
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ranker.parameters())
    # Of each sequence that is counted, the mean length is whole.
    cost = count(ranker, {name: sum(lengths) / 3 for name, lengths in LENGTHS.items()})
    assert cost.parameters == sum(p.numel() for p in ranker.parameters())
    assert cost.flops_per_row_train * 3 == counter.get_total_flops()


def test_auxiliary_stages_are_for_training_alone():
    ranker = build(backbone="tokenmixer_large", options={"num_blocks": 5}, auxiliary=True)
    embeddings, numerics_BN = batch(torch.float32)
    inputs = embedded(embeddings), numerics_BN
    trained = ranker(*inputs)
    assert [stage_BK.shape for stage_BK in trained.stages] == [(3, 3), (3, 3)]
    assert not torch.equal(*trained.stages)
    scored = ranker.eval()(*inputs)
    assert scored.stages == () and torch.equal(scored.logits_BK, trained.logits_BK)
    assert build(backbone="tokenmixer_large", options={"num_blocks": 5})(*inputs).stages == ()
