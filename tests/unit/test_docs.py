"""README.md and the pages of docs/: links, files, tests and config keys that they name are there, and figures agree."""

import functools
import re
import runpy
import typing
from collections.abc import Iterable
from pathlib import Path

import pytest
from pydantic import BaseModel

from rankmixer_dist.config import RunConfig, load_config
from tests.unit.test_structure import code_files, component

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_CHARACTERS = 10_000
MAP = runpy.run_path(str(ROOT / "docs" / "map.py"))

NAMED = re.compile(r"(?<![\w./-])(?:launch|configs|tests|rankmixer_dist|data_pipeline|docs)/[\w./-]*\w")
TEST = re.compile(r"`(test_\w+)`")
TEST_OF = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
TOLERANCE = re.compile(r"\b\d+(?:\.\d+)?e-\d+\b")
KEY = re.compile(
    r"(?<![\w./<>-])((?:source|data|loader|model|sparse|dense|parallel|train|checkpoint|eval|stream)(?:\.[a-z]\w*)+)"
)
FILE_ENDINGS = {"py", "md", "json", "jsonl", "html", "yaml"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """A page's text without what stands in blocks of code, where brackets are no links and # is no heading."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<=\n\n)(?: {4}[^\n]*\n+)+", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE):
        text = LINK.sub(r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
        if found[slug] > 1:
            found[f"{slug}-{found[slug] - 1}"] = 1
    return set(found)


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    broken = []
    for _, link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path: Path) -> None:
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# Two words, `and` more\n\n    # no heading\n\n# Again\n\n# Again\n")
    page.write_text(
        "[a](other.md#two-words-and-more) [b](other.md#again-1) [c](https://there.example) [d](#here)\n\n# Here\n\n"
        "    [e](in-a-block.md)\n\n[f](none.md) [g](other.md#no-heading) [h](#there) [i](other.md#again-2)\n"
    )
    assert broken_links(page) == ["none.md", "other.md#no-heading", "#there", "other.md#again-2"]


@every_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = [name for name in NAMED.findall(page.read_text()) if "VERB" not in name]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@functools.cache
def every_test() -> str:
    """The source of all tests."""
    return "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@every_page
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    assert not [name for name in TEST.findall(text) if f"def {name}(" not in every_test()]
    named = TEST_OF.findall(text)
    assert not [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]


def test_every_guarantee_has_a_test_and_its_tolerance() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    notes = dict(re.findall(r"^\[\^([\w-]+)\]: (.+)$", text, flags=re.MULTILINE))
    claims = re.findall(r"^\| (?!claim )(.+?) \[\^([\w-]+)\] \| (.+?) \| .+ \|$", text, flags=re.MULTILINE)
    assert len(claims) == text.count("\n| ") - text.count("\n| claim ") > 30, "a claim without a note, or another cell"
    assert sorted(note for _, note, _ in claims) == sorted(notes)
    for claim, note, tolerance in claims:
        files = {file for file, _ in TEST_OF.findall(notes[note])}
        assert files, f"no test: {claim}"
        code = "\n".join((ROOT / file).read_text() for file in files)
        stated = {float(number) for number in TOLERANCE.findall(tolerance)}
        assert stated <= {float(number) for number in TOLERANCE.findall(code)}, claim


@every_page
def test_every_row_of_a_table_has_the_cells_of_its_head(page: Path) -> None:
    tables = re.findall(r"(?:^\|.*\|$\n)+", prose(page), flags=re.MULTILINE)
    cells = [{len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]
    assert all(len(counts) == 1 for counts in cells)


def models(annotation: object) -> list[type[BaseModel]]:
    """The models that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models(part)]


def is_key(name: str) -> bool:
    """Whether a dotted name is a key of a run, or of a mapping in one."""
    within: Iterable[type[BaseModel]] = [RunConfig]
    for part in name.split("."):
        fields = [model.model_fields[part] for model in within if part in model.model_fields]
        if not fields:
            return False
        if any(typing.get_origin(field.annotation) is dict for field in fields):
            return True  # below it are names that somebody gave
        within = [model for field in fields for model in models(field.annotation)]
    return True


@every_page
def test_every_config_key_that_a_page_names_is_there(page: Path) -> None:
    named = {name for name in KEY.findall(page.read_text()) if name.rpartition(".")[2] not in FILE_ENDINGS}
    assert not [name for name in named if not is_key(name)]


def test_a_key_that_is_not_there_is_found() -> None:
    there = "train.split train.start_from.run model.rankmixer.moe.num_experts source.rows data.splits.valid"
    assert all(map(is_key, there.split()))
    assert not any(map(is_key, "train.slpit model.rankmixer.moe.experts train.split.name source.row".split()))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The config and the changes to it of each command that a page shows, but for those with a word to fill in."""
    found = []
    for line in page.read_text().replace("\\\n", " ").splitlines():
        for command in re.split("&&|;|`", line):
            words = command.partition(" #")[0].split()
            configs = [word for word in words if re.fullmatch(r"configs/[\w/]+\.yaml", word)]
            changes = [word.strip("'\"") for word in words if re.match(r"['\"]?[a-z_]+(\.[a-z_]\w*)*=", word)]
            if len(configs) == 1 and re.search(r"launch/\w+\.(py|sh)|\brankmixer ", command):
                found.append((configs[0], [change for change in changes if "NAME" not in change]))
    return found


@every_page
def test_every_command_that_a_page_shows_has_a_config(page: Path) -> None:
    for config, changes in commands(page):
        load_config(ROOT / config, changes)


def test_commands_are_found() -> None:
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 30
    changes = ["train.epochs=1", "model.backbone=wukong", "seed=1", "name=wukong_1"]
    assert ("configs/quickstart.yaml", changes) in found


def test_the_readme_is_short() -> None:
    assert len(README.read_text()) <= MOST_CHARACTERS


def test_the_architecture_names_every_folder() -> None:
    named = re.findall(r"`(\w+)`", (ROOT / "docs" / "architecture.md").read_text())
    folders = {component(file) for file in code_files() if Path(file).parent.name != "rankmixer_dist"}
    assert not folders - set(named)


def test_the_map_has_a_line_for_each_module() -> None:
    assert MAP["PAGE"].read_text() == MAP["page"](), "docs/map.md is out of date: run python docs/map.py"
