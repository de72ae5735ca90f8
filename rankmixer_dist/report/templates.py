"""The templates of the pages, and how a page comes to its place."""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from rankmixer_dist.small_file import write_text


def page_template(name: str, filters: dict[str, Callable[..., str]]) -> Template:
    """A template of this folder; a name that it does not know is an error, and all values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def write_page(path: Path, page: str) -> Path:
    """Writes a page, which is the old one or the new one at any time, and returns its path; raises as `write_text`."""
    write_text(path, page)
    return path
