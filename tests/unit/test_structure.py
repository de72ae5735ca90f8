"""The floors of the house, read from the imports, and a few rules of size and tidiness.

A module imports only from lower floors, and each large library has one door. What a module may import is written out
below, component by component: a line that is not there is not allowed.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("rankmixer_dist", "data_pipeline", "launch")
TOP_LEVEL = (
    *CODE, "configs", "docs", "tests", ".ci", "pyproject.toml", "constraints.txt", "Dockerfile", ".editorconfig",
    ".pre-commit-config.yaml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE",
)  # fmt: skip
TEXT = {".py", ".sh", ".sbatch", ".yaml", ".yml", ".toml", ".md", ".jinja", ".cfg", ".cff", ".json", ".txt", ""}
MAX_LINES = 500

# Floor 0, in the order in which its parts may build on each other; none of it knows torch.
FLOOR_0 = (
    "errors", "imports", "there", "launched", "library_errors", "small_file", "checksum", "schema", "config",
    "identity", "command_line", "cost", "metrics", "evaluation", "report", "environment",
)  # fmt: skip
ALLOWED: dict[str, set[str]] = {component: set(FLOOR_0[:index]) for index, component in enumerate(FLOOR_0)}
# Floor 1: tensors. A layer never asks for a config, so layers stand on nothing but torch.
ALLOWED |= {
    "layers": {"errors"},
    "batch": {"errors", "schema"},
    "embedded": set(),
    "ahead": set(),
    "losses": {"errors", "schema"},
    "pieces": set(),
    "threads": set(),
}
FLOOR_1 = {*FLOOR_0, "layers", "batch", "embedded", "ahead", "losses", "pieces", "threads"}
# Floor 2 to 5. `sparse` and `parallel` are siblings and do not know each other.
ALLOWED |= {"models": FLOOR_1, "sparse": {*FLOOR_1, "models"}, "parallel": {*FLOOR_1, "models"}}
# Checkpoints move pieces of tensors between ranks and files; whose they are is not their business.
ALLOWED |= {"checkpoint": {*FLOOR_0, "pieces", "threads", "parallel"}}
FLOOR_3 = {*FLOOR_1, "models", "sparse", "parallel", "checkpoint"}
ALLOWED |= {"serving": FLOOR_3, "train": FLOOR_3}
# Data is prepared and read without the model: floor 0, the batch that it hands over, and who reads it ahead.
ALLOWED |= {"data_pipeline": {*FLOOR_0, "batch", "threads"}}
# The top: what somebody starts. The files of `launch` and `python -m rankmixer_dist` only lead there.
FLOOR_6 = {*FLOOR_3, "serving", "train", "data_pipeline"}
ALLOWED |= {"benchmarks": FLOOR_6, "verbs": {*FLOOR_6, "benchmarks"}}
ALLOWED |= {"launch": {"command_line", "verbs"}, "__main__": {"verbs"}}

# Library -> components that may import it. `environment` checks what is installed, so it may import anything, but only
# inside its check functions, where a broken install becomes a line of the doctor's table.
DOORS: dict[str, set[str]] = {
    "torchrec": {"sparse", "benchmarks"},  # a peer is made of it
    "fbgemm_gpu": {"sparse", "benchmarks"},
    "deepspeed": {"parallel"},
    "torch.distributed": {"parallel", "sparse", "checkpoint"},
    "ray": {"data_pipeline"},
    "torch": {*ALLOWED} - {*FLOOR_0},
}
METRICS_LIBRARIES = {"numpy"}


@dataclass(frozen=True)
class Import:
    """One imported name, and whether it is only imported when a function runs."""

    line: int
    name: str
    lazy: bool


def code_files() -> list[str]:
    """All Python files of the code, relative to the root."""
    return sorted(str(path.relative_to(ROOT)) for folder in CODE for path in (ROOT / folder).rglob("*.py"))


def component(file: str) -> str:
    """The part of the house that a file belongs to: `metrics`, `config`, ..., `verbs`, `data_pipeline` or `launch`."""
    parts = Path(file).with_suffix("").parts
    return parts[1] if parts[0] == "rankmixer_dist" else parts[0]


def component_of_name(name: str) -> str | None:
    """The part of the house that an imported name belongs to, or None for a library."""
    head, *rest = name.split(".")
    if head == "rankmixer_dist":
        return rest[0] if rest else "rankmixer_dist"
    return head if head in CODE else None


def imports(file: str, source: str) -> list[Import]:
    """All imports of a file, those inside functions and under `if` included, and uses of `torch.distributed`."""
    return list(_imports(Path(file).parent.parts, ast.parse(source), lazy=False))


def _imports(package: tuple[str, ...], node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.Import):
            yield from (Import(child.lineno, alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
            module = ".".join(part for part in (above, child.module) if part)
            # `from package import name` may name a module, and `from torch import distributed` does.
            yield from (Import(child.lineno, f"{module}.{alias.name}", inside) for alias in child.names)
        elif isinstance(child, ast.Attribute) and ast.unparse(child) == "torch.distributed":
            yield Import(child.lineno, "torch.distributed", inside)
        yield from _imports(package, child, lazy=inside)


def breaches(file: str, source: str) -> list[str]:
    """The rules that a file's imports break, in words."""
    own = component(file)
    found = []
    for one in imports(file, source):
        where = f"{file}:{one.line} imports {one.name}"
        other = component_of_name(one.name)
        if other is not None:
            if other not in (own, "rankmixer_dist") and other not in ALLOWED.get(own, set()):
                found.append(f"{where}, but {own} may only import {sorted(ALLOWED.get(own, set())) or 'nothing'}")
            continue
        for library, doors in DOORS.items():
            if one.name != library and not one.name.startswith(f"{library}."):
                continue
            if own not in doors and not (own == "environment" and one.lazy):
                found.append(f"{where}, but only {sorted(doors)} may import {library}")
    return found


@pytest.mark.parametrize("file", code_files())
def test_a_module_imports_only_from_lower_floors_and_through_the_doors(file: str) -> None:
    assert not breaches(file, (ROOT / file).read_text())


def test_every_component_has_its_floor() -> None:
    components = {component(file) for file in code_files()} - {"__init__"}
    assert components <= ALLOWED.keys(), "say in ALLOWED what the new component may import"


def test_metrics_are_numpy_only() -> None:
    for file in code_files():
        if component(file) == "metrics":
            names = [one.name for one in imports(file, (ROOT / file).read_text()) if not component_of_name(one.name)]
            libraries = {name.split(".")[0] for name in names} - sys.stdlib_module_names
            assert libraries <= METRICS_LIBRARIES, file


def test_only_tests_import_the_reference_layers() -> None:
    for file in code_files():
        if file.startswith("rankmixer_dist/layers/reference/"):
            continue
        names = [one.name for one in imports(file, (ROOT / file).read_text())]
        assert not [name for name in names if name.startswith("rankmixer_dist.layers.reference")], file


@pytest.mark.parametrize(
    ("file", "source", "breach"),
    [
        ("rankmixer_dist/config.py", "import torch", "may import torch"),
        ("rankmixer_dist/config.py", "def f():\n    import torch", "may import torch"),
        ("rankmixer_dist/environment/x.py", "from torch import nn", "may import torch"),
        ("rankmixer_dist/metrics/x.py", "from rankmixer_dist.report import page", "metrics may only import"),
        ("rankmixer_dist/layers/x.py", "from rankmixer_dist import config", "layers may only import"),
        ("rankmixer_dist/layers/x.py", "from ..config import RunConfig", "layers may only import"),
        ("rankmixer_dist/models/x.py", "import torch\ntorch.distributed.get_rank()", "may import torch.distributed"),
        ("rankmixer_dist/train/x.py", "from torch import distributed", "may import torch.distributed"),
        ("rankmixer_dist/train/x.py", "import deepspeed.moe", "may import deepspeed"),
        ("rankmixer_dist/train/x.py", "import data_pipeline.loader", "train may only import"),
        ("rankmixer_dist/sparse/x.py", "import rankmixer_dist.parallel.engine", "sparse may only import"),
        ("rankmixer_dist/parallel/x.py", "from rankmixer_dist.sparse import shard", "parallel may only import"),
        ("data_pipeline/x.py", "from rankmixer_dist.models import ranker", "data_pipeline may only import"),
        ("data_pipeline/x.py", "from rankmixer_dist.verbs import train", "data_pipeline may only import"),
        ("rankmixer_dist/train/x.py", "from rankmixer_dist.verbs import train", "train may only import"),
        ("rankmixer_dist/verbs/x.py", "import ray", "may import ray"),
        ("launch/x.py", "from rankmixer_dist.train import loop", "launch may only import"),
    ],
)
def test_a_breach_is_found(file: str, source: str, breach: str) -> None:
    assert [found for found in breaches(file, source) if breach in found]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("rankmixer_dist/environment/x.py", "def f():\n    import torch, ray, deepspeed"),
        ("rankmixer_dist/parallel/x.py", "import torch.distributed as dist\nimport deepspeed"),
        ("data_pipeline/x.py", "import torch, ray.data\nfrom rankmixer_dist.batch import Batch"),
        ("rankmixer_dist/verbs/x.py", "from rankmixer_dist.train import loop\nfrom data_pipeline import loader"),
        ("launch/x.py", "from rankmixer_dist.verbs.train import main"),
        ("rankmixer_dist/layers/x.py", "import torch\nimport rayon, torchrecx\nfrom . import y"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str) -> None:
    assert not breaches(file, source)


def test_an_error_of_the_file_system_is_not_taken_for_a_no() -> None:
    # What these do with one differs between the Pythons, and the newest takes most of them for "not there".
    asks_pathlib = re.compile(r"(?<!\bentry)\.(r?glob\(|(exists|is_file|is_dir)\(\))")
    apart = {
        "rankmixer_dist/there.py",
        "data_pipeline/ray_reaper.py",  # stands on the standard library alone
        "rankmixer_dist/train/same_start.py",  # its own source
    }
    found = {
        f"{file}:{number}: ask rankmixer_dist.there instead: {line.strip()}"
        for file in code_files()
        if file not in apart and component(file) not in ("environment", "benchmarks", "verbs", "launch")
        for number, line in enumerate((ROOT / file).read_text().splitlines(), start=1)
        if asks_pathlib.search(line)
    }
    assert not found


def test_no_python_file_is_longer_than_500_lines() -> None:
    files = [*(ROOT / file for file in code_files()), *(ROOT / "tests").rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert not {file: count for file, count in lines.items() if count > MAX_LINES}


@pytest.mark.parametrize("file", code_files())
def test_every_module_says_what_it_is(file: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / file).read_text())), "give the module a docstring of one sentence"


def test_no_text_names_a_folder_of_somebodys_machine() -> None:
    # Spelled so that this file does not find itself. Paths inside containers and of devices are another matter.
    folders = "|".join(("work", "tmp", "root", "home", "Users", "scratch", "mnt"))
    machine_path = re.compile(rf"(?<![\w.~$}}/:-])/(?:{folders})/")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if machine_path.search(line)
    ]
    assert not found


def text_files() -> list[Path]:
    """All text files of the repository, without what builds and runs leave behind."""
    files = [path for name in TOP_LEVEL for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    return [path for path in files if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts]
