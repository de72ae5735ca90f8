"""Writes map.md: one line a module, of its docstring. Run `python docs/map.py` after a docstring changed."""

import ast
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "map.md"
HEAD = """\
# One line a file

`python docs/map.py` writes this page from the modules' docstrings; a test fails where it was not called.
[Architecture](architecture.md) says how the parts stand on each other.
"""


def lines(root: Path = ROOT) -> list[str]:
    """A heading for each folder with Python modules, and below it a line for each module."""
    folders = ("launch", "data_pipeline", "rankmixer_dist")
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"), key=_place)]
    found = []
    for folder, modules in groupby(paths, key=lambda path: path.parent):
        found += ["", f"## {folder.relative_to(root)}/", ""]
        found += [f"- `{path.name}`: {_first_sentence(path)}" for path in modules]
    return found


def _place(path: Path) -> tuple[str, bool, str]:
    """Folder by folder, what a package says of itself first."""
    return str(path.parent), path.name != "__init__.py", path.name


def _first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD.rstrip(), *lines(), ""])


if __name__ == "__main__":
    PAGE.write_text(page())
