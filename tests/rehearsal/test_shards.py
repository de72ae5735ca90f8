"""Tables sharded over 16 and 512 ranks: each rank's rows lie on its own device, and together they are every table once.

One process is one rank after the other (`shard_cases`), on the CPU and, with the CUDA wheels, on `cuda` tensors without
values, through the CUDA branches of TorchRec, its planner and FBGEMM.
"""

import json
from collections import Counter

import pytest

from rankmixer_dist.config import load_config
from tests.conftest import ROOT
from tests.rehearsal.conftest import lines_of, needs_cuda_wheels

FILES = ("quickstart", "kuairand_pure")
KINDS = [pytest.param("cpu"), pytest.param("cuda", marks=needs_cuda_wheels)]


def held(launch, kind, ranks, members):
    """By config, what each member of so many ranks holds."""
    cases = [(str(ROOT / "configs" / f"{file}.yaml"), []) for file in FILES]
    script = "tests/rehearsal/shard_cases.py"
    found = lines_of(launch.python(script, kind, str(ranks), json.dumps(members), json.dumps(cases)))
    assert not [each["error"] for each in found if each["error"]]
    assert len(found) == len(FILES) * len(members)
    return {
        file: [each for each in found if each["file"] == path] for file, (path, _) in zip(FILES, cases, strict=True)
    }


def device_of(kind, rank):
    return "cpu" if kind == "cpu" else f"cuda:{rank % 8}"


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_ranks_hold_every_row_once(launch, kind):
    for file, of_ranks in held(launch, kind, 16, list(range(16))).items():
        rows = Counter()
        for found in of_ranks:
            assert {piece["device"] for piece in found["pieces"]} <= {device_of(kind, found["rank"])}
            for piece in found["pieces"]:
                rows[piece["key"]] += piece["size"][0]
        tables = load_config(ROOT / "configs" / f"{file}.yaml").features.tables
        expected = {f"tables/{name}.{part}": table.rows for name, table in tables.items() for part in ("weight", "sum")}
        assert rows == expected


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_of_512(launch, kind):
    for of_ranks in held(launch, kind, 512, [0, 141]).values():
        assert {each["rank"] for each in of_ranks} == {0, 141}
        for found in of_ranks:
            assert {piece["device"] for piece in found["pieces"]} <= {device_of(kind, found["rank"])}
