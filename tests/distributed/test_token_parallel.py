"""A backbone whose tokens are spread over ranks trains as on one rank, sends what it should, and resumes anywhere."""

import itertools
import json

import pytest
import torch

from rankmixer_dist.checkpoint.storage import read_whole
from tests.distributed.exchange_formula import exchange_cost

pytestmark = pytest.mark.thorough

STEPS, SAVED_AT = 32, 16
OWNED_SIZES = {1: (1,), 2: (1, 2), 4: (1, 2, 4)}
# At most ten times the largest differences seen, each relative to the largest value of its kind. Adam divides by the
# root of exp_avg_sq, and so multiplies differences of the smallest gradients, in the weights alone.
TOLERANCE = {"losses": 2.1e-6, "weight": 7.5e-5, "exp_avg": 4.7e-6, "exp_avg_sq": 2.2e-6}
TOLERANCE |= {"output": 3.8e-6, "input_gradient": 9.7e-6}

BLOCK = {"num_tokens": 8, "token_dim": 16, "num_blocks": 3, "hidden_dim": 24}
WIDE = {"num_tokens": 40, "token_dim": 40, "hidden_dim": 8}
"""Enough tokens that the pooling is a tenth of an all-to-all on four ranks, in fp32."""
LARGE = BLOCK | {"name": "tokenmixer_large", "num_blocks": 5, "down_init": 1.0}
OPTIONS = [
    BLOCK,
    BLOCK | {"norm": "pre"},
    BLOCK | {"norm": "none", "norm_kind": "rms", "num_blocks": 1},
    BLOCK | {"skip": False, "norm_kind": "rms"},
    WIDE | {"num_blocks": 2},
    WIDE | {"num_blocks": 4},
    LARGE,
    LARGE | {"num_blocks": 1},
]

REFERENCES = [{"name": f"alone-{model}", "ep": 0, "model": model} for model in ("post", "pre", "large")]
REFERENCES += [{"name": "alone-free", "ep": 0, "model": "post", "clip": None}]


def case(ranks, ep, mode, stage, **more):
    """RankMixer, but for another model in `more`."""
    model = "pre" if stage == 1 else "post"
    name = f"{ranks}-{ep}-{mode}-{stage}"
    return {"name": name, "ep": ep, "mode": mode, "stage": stage, "model": model} | more


def training(ranks):
    modes = itertools.product(OWNED_SIZES[ranks], ("token", "plain"), (0, 1, 2))
    cases = [case(ranks, ep, mode, stage) for ep, mode, stage in modes if (ep, mode) != (1, "plain")]
    for ep in OWNED_SIZES[ranks][1:]:
        cases.append(case(ranks, ep, "token", 0, name=f"{ranks}-{ep}-free", clip=None))
        cases.append(case(ranks, ep, "token", 1, name=f"{ranks}-{ep}-large", model="large", pieces=2))
        cases.append(case(ranks, ep, "plain", 0, name=f"{ranks}-{ep}-large-plain", model="large"))
    return cases


def resumed(ranks, ep, mode, stage, source):
    """Goes on with `source`'s model, and this stage."""
    name = f"{ranks}-{ep}-{mode}-{stage}-from-{source['name']}"
    return case(ranks, ep, mode, stage, name=name, source=source["name"], model=source["model"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("token_parallel")


@pytest.fixture(scope="module")
def start(launch, folder):
    """Does cases on so many ranks; their results by kind."""

    def run(ranks, **kinds):
        script = "tests/distributed/token_parallel_cases.py"
        ended = launch.forked(script, str(folder), json.dumps(kinds), ranks=ranks)
        assert ended.returncode == 0, ended.stderr[-3000:]
        found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        assert len(found) == sum(map(len, kinds.values()))
        return {kind: [each for each in found if each["kind"] == kind] for kind in kinds}

    return run


@pytest.fixture(scope="module")
def results(start):
    """By ranks: everything that is trained from its start, every pass, and what is refused."""
    found = {}
    for ranks in (1, 2, 4):
        sizes = itertools.product(OWNED_SIZES[ranks], ("token", "plain"), OPTIONS)
        passes = [{"ep": ep, "mode": mode, "pieces": 1, "options": options} for ep, mode, options in sizes]
        in_two = itertools.product(OWNED_SIZES[ranks], (BLOCK, LARGE))
        passes += [{"ep": ep, "mode": "token", "pieces": 2, "options": options} for ep, options in in_two]
        refused = [{"ep": 3, "options": BLOCK}] if ranks == 4 else []
        refused += [{"ep": ranks, "options": BLOCK | {"num_tokens": 7, "token_dim": 14}}] if ranks > 1 else []
        refused += [
            {"ep": ranks, "options": BLOCK | {"mixing": "none"}},
            {"ep": ranks, "options": BLOCK | {"shared_ffn": True}},
            {"ep": ranks, "options": BLOCK | {"num_heads": 4, "skip": False}},
            {"ep": ranks, "options": LARGE | {"num_heads": 4}},
            {"ep": ranks, "options": {"name": "dlrm_mlp", "num_tokens": 8, "token_dim": 16}},
        ]
        cases = [*(REFERENCES if ranks == 1 else []), *training(ranks)]
        found[ranks] = start(ranks, train=cases, passes=passes, refuse=refused)
    return found


def differences(folder, found, expected, since=0):
    """Largest differences of a run from the reference, over all losses and all tensors of the last state."""
    losses = torch.tensor(found["losses"]), torch.tensor(expected["losses"][since:])
    assert len(losses[0]) == len(losses[1]) == STEPS - since
    kinds = {"losses": [losses]}
    state, reference = (read_whole(folder / f"{run['name']}-end") for run in (found, expected))
    assert state.keys() == reference.keys()
    for key in state:
        kinds.setdefault(key.split(".")[-1], []).append((state[key], reference[key]))
    assert kinds.keys() == {"losses", "weight", "exp_avg", "exp_avg_sq"}

    def apart(pairs):
        return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for _, b in pairs)

    return {kind: apart(pairs) for kind, pairs in kinds.items()}


def assert_close(found, name):
    print(name, *(f"{kind} {value:.1e}" for kind, value in found.items()))
    assert all(value <= TOLERANCE[kind] for kind, value in found.items()), (name, found)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_training_matches_one_process(results, folder, ranks):
    references = {run["name"]: run for run in results[1]["train"] if run["ep"] == 0}
    free = references["alone-free"]["losses"]
    assert max(abs(a / b - 1) for a, b in zip(free, references["alone-post"]["losses"], strict=True)) > 0.05
    for run in results[ranks]["train"]:
        if run["ep"] == 0:
            continue
        expected = references["alone-free" if "clip" in run else f"alone-{run['model']}"]
        assert_close(differences(folder, run, expected), run["name"])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_passes_match_the_local_model_and_send_what_the_formula_says(results, ranks):
    for run in results[ranks]["passes"]:
        assert_close({kind: run[kind] for kind in ("output", "input_gradient")}, str(run))
        sizes = {key: run["options"][key] for key in ("num_tokens", "token_dim", "num_blocks")}
        sizes |= {"expert_size": run["ep"], "rows_per_rank": run["rows"], "value_bytes": 4}
        sizes |= {"pieces": run["pieces"]}
        if "name" in run["options"]:
            sizes |= {"reverts": True, "stages": (sizes["num_blocks"] - 1) // 2}
        cost = exchange_cost(run["mode"], **sizes)
        each_way = {"exchanges": cost.exchanges, "bytes": cost.bytes_sent}
        assert run["sent"] == {f"{what}_{way}": n for way in ("forward", "backward") for what, n in each_way.items()}
        assert (cost.exchanges > 0) == (run["ep"] > 1)


@pytest.mark.parametrize(("ranks", "ep"), [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("blocks", [2, 4])
def test_token_parallelism_sends_half(results, ranks, ep, blocks):
    sent = {
        run["mode"]: run["sent"]
        for run in results[ranks]["passes"]
        if run["ep"] == ep and run["pieces"] == 1 and run["options"] == WIDE | {"num_blocks": blocks}
    }
    for way in ("bytes_forward", "bytes_backward"):
        assert 0 < 20 * blocks * sent["token"][way] <= (10 * blocks + 1) * sent["plain"][way]  # (L + 0.1) / 2L


def test_what_cannot_be_spread_is_refused(results):
    said = {ranks: [run["said"] for run in results[ranks]["refuse"]] for ranks in (1, 2, 4)}
    others = [
        "tokens can be spread with mixing 'heads', not with 'none'; use expert size 1",
        "only per-token FFNs and experts can be spread; use expert size 1 or leave shared_ffn out",
        "tokens cannot be spread with a num_heads that is not the number of tokens; use expert size 1",
        "tokens cannot be spread with a num_heads that is not the number of tokens; use expert size 1",
        "only rankmixer, tokenmixer_large and what else names its seams can be spread; use expert size 1",
    ]
    assert said[1] == others
    assert said[2] == ["expert size 2 does not divide the 7 tokens; use one of 1, 7", *others]
    assert said[4] == [
        "expert size 3 does not divide the 4 ranks; use one of 1, 2, 4",
        "expert size 4 does not divide the 7 tokens; use one of 1, 7",
        *others,
    ]


def test_a_state_moves_between_expert_sizes_ranks_and_stages(results, start, folder):
    two, four = case(2, 2, "token", 1), case(4, 4, "plain", 2)
    alone, both = case(1, 1, "token", 0), case(4, 2, "token", 0)
    jobs = {
        1: [resumed(1, 1, "token", 1, four), resumed(1, 1, "token", 2, two)],
        2: [resumed(2, 2, "token", 2, four), resumed(2, 1, "token", 0, both), resumed(2, 2, "plain", 0, alone)],
        4: [
            resumed(4, 4, "token", 1, two),
            resumed(4, 2, "token", 2, four),
            resumed(4, 1, "token", 1, both),
            resumed(4, 2, "plain", 1, alone),
            resumed(4, 4, "token", 0, both),
        ],
    }
    references = {run["model"]: run for run in results[1]["train"] if run["ep"] == 0 and "clip" not in run}
    for ranks, cases in jobs.items():
        for run in start(ranks, train=cases)["train"]:
            saved, taken_up = (
                read_whole(folder / f"{run['source']}-half"),
                read_whole(folder / f"{run['name']}-taken-up"),
            )
            assert saved.keys() == taken_up.keys()
            assert all(torch.equal(taken_up[key], tensor) for key, tensor in saved.items()), run["name"]
            assert run["updates"] == STEPS
            assert_close(differences(folder, run, references[run["model"]], since=SAVED_AT), run["name"])
