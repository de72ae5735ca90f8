"""No message advises a key that the config does not have, or a script that is not there."""

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rankmixer_dist.config import RunConfig
from rankmixer_dist.config.load import _models

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [
    name
    for name, field in RunConfig.model_fields.items()
    if name != "features" and any(issubclass(model, BaseModel) for model in _models([field.annotation]))
]
KEY = re.compile(rf"(?<![\w./-])({'|'.join(SECTIONS)})((?:\.[a-z_]+)+)(?![\w(/])")
FILE_ENDINGS = (".json", ".py", ".yaml", ".parquet", ".html", ".jinja", ".pkl", ".new")
ANNOTATIONS = ("sparse.csr_matrix",)


def messages(source: str) -> Iterator[str]:
    """The texts in a program's strings that are not docstrings; what is put into them reads as `{}`."""
    tree = ast.parse(source)
    documentation = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if node in documentation or node in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def exists(section: str, keys: str) -> bool:
    """Whether `section.key.key` is a key of some config; beyond a free name, as a split's, nothing is looked at."""
    annotations: list[Any] = [RunConfig.model_fields[section].annotation]
    for key in keys.strip(".").split("."):
        held = [model.model_fields[key].annotation for model in _models(annotations) if key in model.model_fields]
        if not held:
            return any(typing.get_origin(annotation) is dict for annotation in annotations)
        annotations = held
    return True


FILES = sorted(
    path for folder in ("rankmixer_dist", "data_pipeline", "launch") for path in (ROOT / folder).rglob("*.py")
)


def advised(text: str) -> list[str]:
    """The keys that a text names and that no config has."""
    found = ["".join(match.groups()) for match in KEY.finditer(text)]
    found = [key for key in found if not key.endswith(FILE_ENDINGS) and key not in ANNOTATIONS]
    return [key for key in found if not exists(*key.split(".", 1))]


def test_keys_that_messages_name_exist() -> None:
    wrong = [(path.name, key) for path in FILES for text in messages(path.read_text()) for key in advised(text)]
    assert not wrong


def test_files_that_messages_name_exist() -> None:
    script = re.compile(r"launch/[a-z_/]+\.(?:py|sh)")
    named = {name for path in FILES for text in messages(path.read_text()) for name in script.findall(text)}
    assert "launch/preprocess.py" in named
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("set data.on_bad_row=set_aside", []),
        ("set data.on_bad_rows=set_aside", ["data.on_bad_rows"]),
        ("train.start_from.run {}", []),
        ("train.start_from.path", ["train.start_from.path"]),
        ("model.rankmixer.moe.kind dtsi", []),
        ("model.rankmixer.moe.top_k", ["model.rankmixer.moe.top_k"]),
        ("data.splits.validation.start", []),
    ],
)
def test_a_key_that_is_not_there_is_found(text: str, wrong: list[str]) -> None:
    assert advised(text) == wrong
