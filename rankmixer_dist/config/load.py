"""From a YAML file and command-line overrides to a checked config, or to one clear line that says what is wrong."""

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from rankmixer_dist.config.run import RunConfig
from rankmixer_dist.config.yaml_text import check_values, parse_override, read_config_file, shortened, telling
from rankmixer_dist.errors import UserError, nearest


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Reads `path`, lays it over the file that it `extends`, applies `section.key=value` overrides, checks the whole.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown (the nearest known one is named), a value does
            not fit, or an environment variable that it refers to is not set.
    """
    path = Path(path)
    merged = _read_run(path)
    # A `features=PATH` override names the file that the other overrides then reach into.
    for override in sorted(overrides, key=lambda text: not text.startswith("features=")):
        change = parse_override(override)
        if not override.startswith("features="):
            _include_features(merged, path)
        with telling(f"override {shortened(override)}"):
            _require_change(merged, change, override)
            merged.merge_with(change)
    _include_features(merged, path)
    with telling(str(path)):
        values = OmegaConf.to_container(merged, resolve=True)
    try:
        check_values(values)
        config = RunConfig.model_validate(values)
        check_values(config.model_dump())  # the text "nan" has become a number
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(error)}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _require_change(merged: DictConfig, change: DictConfig, override: str) -> None:
    """Raises a `UserError` for an empty mapping over one with keys: mappings merge, so all keys would stay."""
    key = override.partition("=")[0]
    given, there = OmegaConf.select(change, key), OmegaConf.select(merged, key)
    if isinstance(given, DictConfig) and not given and isinstance(there, DictConfig) and there:
        raise UserError(
            f"override {shortened(override)} would keep all keys of {key}, since mappings merge; name keys to change"
        )


def _read_run(path: Path, within: tuple[Path, ...] = ()) -> DictConfig:
    """A run's file over the one that its `extends` names, relative to it; lists and values replace, mappings merge."""
    run = read_config_file(path)
    base_path = _extended(run, path, "extends")
    if base_path is None:
        return run
    if base_path.resolve() in within or base_path.resolve() == path.resolve():
        raise UserError(f"{path}: extends {base_path.name}, which extends it")
    base = _read_run(base_path, (*within, path.resolve()))
    with telling(str(path)):
        if isinstance(base.get("features"), str):
            base.features = str(base_path.parent.resolve() / base.features)
        return DictConfig(OmegaConf.merge(base, run))


def _include_features(config: DictConfig, path: Path) -> None:
    """Reads the file that `features` names, or lays its keys over the one that its own `extends` names."""
    with telling(str(path)):
        features = config.get("features")
    if isinstance(features, str):
        config.features = read_config_file(path.parent / features)
    elif isinstance(features, DictConfig):
        base = _extended(features, path, "features.extends")
        if base is not None:
            with telling(str(path)):
                config.features = OmegaConf.merge(read_config_file(base), features)


def _extended(keys: DictConfig, path: Path, name: str) -> Path | None:
    """Takes `extends` out of a mapping: the file that it names, relative to `path`."""
    with telling(str(path)):
        named = keys.pop("extends", None)
    if named is not None and not isinstance(named, str):
        raise UserError(f"{path}: {name}: {shortened(named)} names no file; write one path")
    return None if named is None else path.parent / named


def _describe(error: ValidationError) -> str:
    """The first problem in one line, with the nearest known key for an unknown one, and how many more there are."""
    problems = error.errors()
    # An unknown key often also leaves a required one missing; the typo is the cause, so it is told first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    models, location = _walk(problem["loc"])
    where = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        text = f"unknown key {where}{nearest(location[-1], {key for model in models for key in model.model_fields})}"
    else:
        text = f"{where}: {problem['msg'].removeprefix('Value error, ')}".removeprefix("config: ")
        if problem["type"] not in ("value_error", "missing"):
            text += f" (got {shortened(problem['input'])})"
        if problem["type"] == "literal_error":
            text += nearest(str(problem["input"]), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _walk(location: tuple[int | str, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """The models that could hold the last key of `location`, and the location without the tags of unions."""
    annotations: list[Any] = [RunConfig]
    models: list[type[BaseModel]] = []
    keys: list[str] = []
    for part in location:
        models = _models(annotations)
        tagged = [m for m in models if "kind" in m.model_fields and part in _tag(m)]
        if tagged:
            annotations = list(tagged)
            continue
        keys.append(str(part))
        held = [m.model_fields[str(part)].annotation for m in models if part in m.model_fields]
        annotations = held or annotations  # a key of a dict: what it holds stays as it is
    return models, keys


def _tag(model: type[BaseModel]) -> tuple[Any, ...]:
    return typing.get_args(model.model_fields["kind"].annotation)


def _models(annotations: typing.Iterable[Any]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        elif typing.get_origin(annotation) is dict:
            found += _models(typing.get_args(annotation)[1:])
        elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
            found += _models(typing.get_args(annotation))
    return found
