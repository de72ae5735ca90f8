"""From a YAML file and command-line overrides to a checked config, or to one clear line that says what is wrong."""

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from rankmixer_dist.config.run import RunConfig
from rankmixer_dist.errors import UserError, nearest


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Reads `path`, lays it over the file that it `extends`, applies `section.key=value` overrides, checks the whole.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown (the nearest known one is named), a value does
            not fit, or an environment variable that it refers to is not set.
    """
    path = Path(path)
    merged = _read_run(path)
    try:
        # A `features=PATH` override names the file that the other overrides then reach into.
        for override in sorted(overrides, key=lambda text: not text.startswith("features=")):
            key, equals, _ = override.partition("=")
            if not equals or not key:
                raise UserError(f"override {override!r} is not of the form section.key=value")
            if key != "features":
                _include_features(merged, path)
            merged.merge_with(OmegaConf.from_dotlist([override]))
        _include_features(merged, path)
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(error)}") from error


def _read_run(path: Path, within: tuple[Path, ...] = ()) -> DictConfig:
    """A run's file over the one that its `extends` names, relative to it; lists and values replace, mappings merge."""
    run = _read_yaml(path)
    base_name = run.pop("extends", None)
    if base_name is None:
        return run
    base_path = path.parent / str(base_name)
    if base_path.resolve() in within:
        raise UserError(f"{path}: extends {base_name}, which extends it")
    base = _read_run(base_path, (*within, path.resolve()))
    if isinstance(base.get("features"), str):
        base.features = str(base_path.parent.resolve() / base.features)
    return DictConfig(OmegaConf.merge(base, run))


def _include_features(config: DictConfig, path: Path) -> None:
    """Reads the file that `features` names, or lays its keys over the one that its own `extends` names."""
    features = config.get("features")
    if isinstance(features, str):
        config.features = _read_yaml(path.parent / features)
    elif isinstance(features, DictConfig) and "extends" in features:
        base = _read_yaml(path.parent / features.pop("extends"))
        config.features = OmegaConf.merge(base, features)


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if isinstance(loaded, ListConfig) or not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: not a mapping of keys to values")
    return loaded


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
            text += f" (got {problem['input']!r})"
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
