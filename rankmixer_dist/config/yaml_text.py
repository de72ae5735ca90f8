"""YAML of files and of the command line, as keys and values or as one clear line about what is wrong with it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.small_file import read_text

MAX_NODES = 200_000
"""Of a file, aliases written out: about ten a feature, so 20,000 features."""
MAX_NUMBER = 2**63
_SHOWN = 80


def read_config_file(path: Path) -> DictConfig:
    """The mapping in a YAML file, interpolations as they stand.

    Raises:
        UserError: it cannot be read, is no YAML, no mapping, or its aliases write out to too much.
    """
    text = read_text(path)
    with telling(str(path), "not valid YAML: ", text):
        try:
            loaded = OmegaConf.create(text, max_yaml_expanded_nodes=MAX_NODES) if _is_mapping(text) else None
        except OSError:  # OmegaConf's, of a number
            loaded = None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: not a mapping of keys to values")
    return loaded


SECTIONS = "features source data loader model sparse dense parallel train checkpoint eval stream".split()
"""Of every `config.yaml` that a run has written, in the order of the file."""


def read_resolved(path: Path) -> dict[str, Any]:
    """The keys of a `config.yaml` that a run wrote.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    text = read_text(path)
    with telling(str(path), "not valid YAML: ", text):
        keys = yaml.safe_load(text)
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path}: not the config of a run; put back what was there, or choose another `name`")
    if missing := [section for section in SECTIONS if section not in keys]:  # the rest of a torn file may be valid YAML
        raise UserError(
            f"{path}: has no section {', '.join(missing)}, as if it were cut short; put back what was there, or choose "
            "another `name`"
        )
    return keys


def parse_override(override: str) -> DictConfig:
    """`section.key=value` as a mapping.

    Raises:
        UserError: it has no key or no `=`, or its value is no YAML.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {shortened(override)} is not of the form section.key=value")
    if value == "???":
        raise UserError(f"override {shortened(override)}: ??? stands for no value; write the value")
    with telling(f"override {shortened(override)}", "", value):
        return OmegaConf.from_dotlist([override])


@contextmanager
def telling(where: str, what: str = "", text: str = "") -> Iterator[None]:
    """Turns what the YAML libraries raise of a user's `text` into a `UserError` that begins with `where` and `what`."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_of_omegaconf(error)}") from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where}: {what}{_marked(error, text)}") from error
    except yaml.YAMLError as error:  # of the characters, which are no text
        raise UserError(f"{where}: {what}{getattr(error, 'reason', None) or one_line(error)}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not UTF-8; write it in UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{where}: {what}nested too deeply") from error
    except ValueError as error:
        if isinstance(error, UserError) or "digits" not in str(error):
            raise
        raise UserError(f"{where}: a number has too many digits; numbers are below 2**63") from error


def check_values(values: Any, key: str = "") -> None:
    """Makes sure that the numbers of a config can be computed with, and that its texts can be written.

    Raises:
        UserError: a number is not finite or does not fit 64 bits, a text has a character that no file name or UTF-8
            file can hold; names the key.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            check_values(name, f"key {shortened(name)} of {key or 'the config'}")
            check_values(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for place, value in enumerate(values):
            check_values(value, f"{key}[{place}]")
    elif isinstance(values, float) and not math.isfinite(values):
        raise UserError(f"{key}: {values} is not finite; set a number")
    elif isinstance(values, int | float) and abs(values) >= MAX_NUMBER:
        raise UserError(f"{key}: {shortened(values)} does not fit 64 bits; set a number below 2**63")
    elif isinstance(values, str) and ("\0" in values or any("\ud800" <= char <= "\udfff" for char in values)):
        raise UserError(f"{key}: {shortened(values)} has a character that cannot be written; leave it out")


def shortened(value: Any) -> str:
    """A value as Python writes it, cut where that is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _is_mapping(text: str) -> bool:
    """Whether the document is a mapping; of a list or a scalar OmegaConf makes one of its own."""
    return isinstance(yaml.compose(text, Loader=yaml.CSafeLoader), yaml.MappingNode)


def _of_omegaconf(error: OmegaConfBaseException) -> str:
    """What is wrong, behind the key where it is."""
    said = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
    return f"{error.full_key}: {said}" if error.full_key else said


def _marked(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    if "node expansion" in str(error.problem) or "aliases expand" in str(error.problem):
        return f"its aliases (*name) write out to too much; a config has less than {MAX_NODES:,} values"
    said = ": ".join(part for part in (error.context, error.problem) if part)
    if mark is None:
        return one_line(ValueError(said))
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    tab = "; indent with spaces, not with tabs" if "\t" in line else ""
    return " ".join(f"line {mark.line + 1}, column {mark.column + 1}: {said}{tab}".split())
