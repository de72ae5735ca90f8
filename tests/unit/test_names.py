"""Names of tables, groups, features and tasks: what torch refuses is refused when the config is read."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rankmixer_dist.schema import TORCH_NAMES, Schema
from rankmixer_dist.sparse.tables import EmbeddingTables

REFUSED = sorted({*dir(nn.ModuleDict()), "item.v2", ".", "_x", ""})
FINE = ["item", "items_", "item_v2", "weight", "embeddings", "x/y", "[red]z", "<b>", "a b", "新", "100%", "0", "None"]


def declared(table: str, **names: str) -> dict[str, Any]:
    group, feature, task = (names.get(kind, kind) for kind in ("group", "feature", "task"))
    return {
        "tables": {table: {"rows": 8, "dim": 4}},
        "groups": {group: 1},
        "features": {
            feature: {"kind": "id", "column": "raw", "table": table, "group": group},
            "seen": {"kind": "sequence", "table": table, "pooling": "mean", "group": group},
        },
        "tasks": {task: {}},
    }


def refusal(declaration: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        Schema.model_validate(declaration)
    (problem,) = caught.value.errors()
    assert "\n" not in problem["msg"]
    return problem["msg"]


def bags(table: str) -> dict[str, Any]:
    schema = declared(table)
    del schema["features"]["seen"]
    return schema


def test_the_names_that_torch_takes_are_those_of_its_module() -> None:
    assert {name for name in dir(nn.ModuleDict()) if not name.startswith("_")} == TORCH_NAMES


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_torch_refuses_is_refused_by_name(name: str) -> None:
    told = refusal(declared(name))
    assert f"table {name!r}" in told
    if "call it" in told:  # what it suggests is free
        suggested = told.split("call it '")[1].split("'")[0]
        Schema.model_validate(declared(suggested))
    assert not name or "salt: " in told


@pytest.mark.parametrize("name", FINE)
def test_torch_holds_what_is_not_refused(name: str) -> None:
    for declaration in (declared(name), bags(name)):
        tables = EmbeddingTables(Schema.model_validate(declaration), device=torch.device("meta"))
        assert [key.split(".")[-2] for key, _ in tables.named_parameters()] == [name]


@pytest.mark.parametrize("kind", ["group", "feature", "task"])
@pytest.mark.parametrize("name", ["", " ", "a ", "a\nb", "a\x00b", "a\x1b[31m"])
def test_names_that_cannot_be_read_are_refused(kind: str, name: str) -> None:
    assert f"{kind} {name!r}: " in refusal(declared("item", **{kind: name}))


@pytest.mark.parametrize("kind", ["group", "feature", "task"])
@pytest.mark.parametrize("name", ["items", "train", "a.b", *FINE])
def test_groups_features_and_tasks_may_have_any_other_name(kind: str, name: str) -> None:
    Schema.model_validate(declared("item", **{kind: name}))
