"""Where the weights that a dense parameter begins with lie in another run's: by task, sequence, group and token."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from rankmixer_dist.schema import Schema, SequenceFeature
from rankmixer_dist.train.counterparts import Counterparts

Shape = tuple[int, ...]
_OUTPUTS = "tokenizer.outputs"


@dataclass(frozen=True)
class Run:
    """Elements of a flattened parameter, from `at` on, and where they lie in the other run's parameter `there`."""

    there: str
    at: int
    there_at: int
    count: int


def parameter_runs(parameter: str, shape: Shape, shapes: Mapping[str, Shape], models: Counterparts) -> list[Run]:
    """What of a dense parameter there means the same here; nothing for one that has to start afresh.

    Args:
        shape: the parameter's, here.
        shapes: of all parameters there.
    """
    old = models.there(parameter)
    if old != parameter:  # who names it means it
        return _whole(old, shape, shapes)
    kind, _, rest = parameter.partition(".")
    if kind in ("heads", "auxiliary_heads"):
        return _merged(_of_tasks(parameter, shape, shapes, models))
    if kind == "poolings":
        return _of_pooling(rest, shape, shapes, models)
    if kind == "tokenizer":
        return _of_tokenizer(parameter, shape, shapes, models)
    if kind == "backbone" and not models.has_same_tokens():
        return []
    return _whole(parameter, shape, shapes)


def _whole(old: str, shape: Shape, shapes: Mapping[str, Shape]) -> list[Run]:
    return [Run(old, 0, 0, math.prod(shape))] if shapes.get(old) == shape else []


def _merged(runs: Iterable[Run]) -> list[Run]:
    """The same, those together that follow one another here and there."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        follows = last and (last.there, last.at + last.count, last.there_at + last.count)
        if last is not None and follows == (run.there, run.at, run.there_at):
            found[-1] = replace(last, count=last.count + run.count)
        else:
            found.append(run)
    return found


def _of_tasks(parameter: str, shape: Shape, shapes: Mapping[str, Shape], models: Counterparts) -> Iterator[Run]:
    old = shapes.get(parameter)
    if old is None or old[1:] != shape[1:]:
        return
    size, places = math.prod(shape[1:]), [*models.theirs.tasks]
    for place, task in enumerate(models.mine.tasks):
        if models.task_problem(task) is None:
            yield Run(parameter, place * size, places.index(models.old_name("task", task)) * size, size)


def _of_pooling(rest: str, shape: Shape, shapes: Mapping[str, Shape], models: Counterparts) -> list[Run]:
    index, _, inner = rest.partition(".")
    name = [*models.mine.of_kind(SequenceFeature)][int(index)]
    if models.feature_problem(name) is not None:
        return []
    place = [*models.theirs.of_kind(SequenceFeature)].index(models.old_name("feature", name))
    return _whole(f"poolings.{place}.{inner}", shape, shapes)


def _of_tokenizer(parameter: str, shape: Shape, shapes: Mapping[str, Shape], models: Counterparts) -> list[Run]:
    mine, theirs = models.my_model.tokenizer, models.their_model.tokenizer
    if mine.kind != theirs.kind or (mine.hidden_ratio is None) != (theirs.hidden_ratio is None):
        return []
    if mine.kind == "group" and not parameter.startswith("tokenizer.global_mlp."):
        return _merged(_of_groups(parameter, shape, shapes, models))
    groups = [models.old_name("group", group) for group in models.mine.groups]
    reads_the_same = groups == [*models.theirs.groups] and not models.changed_groups()
    widths, old_widths = (
        [columns for group in each.groups for columns in _columns(each, group).values()]
        for each in (models.mine, models.theirs)
    )
    return _whole(parameter, shape, shapes) if reads_the_same and widths == old_widths else []


def _of_groups(parameter: str, shape: Shape, shapes: Mapping[str, Shape], models: Counterparts) -> Iterator[Run]:
    """Of a `GroupTokenizer`: a group's token by the columns of its features, which may have come and gone."""
    stem, _, leaf = parameter.rpartition(".")
    hidden = models.my_model.tokenizer.hidden_ratio is not None
    their_places = {
        (old_stem == _OUTPUTS, entry): (f"{old_stem}.{leaf}", place)
        for old_stem, entries in _entries(models.theirs, hidden=hidden).items()
        for place, entry in enumerate(entries)
    }
    for place, (group, token) in enumerate(_entries(models.mine, hidden=hidden)[stem]):
        old_group = models.old_name("group", group)
        old, old_place = their_places.get((stem == _OUTPUTS, (old_group, token)), ("", 0))
        old_shape, columns = shapes.get(old), [*_columns_alike(models, group, old_group)]
        if old_shape is None or old_shape[2:] != shape[2:] or not columns:
            continue
        if leaf == "bias" or stem == _OUTPUTS:  # nothing in it is a feature's own
            size = math.prod(shape[1:])
            columns = [(0, 0, 1)] if old_shape[1:] == shape[1:] else []
            first, old_first = place * size, old_place * size
        else:
            size = shape[2]
            first, old_first = place * shape[1] * size, old_place * old_shape[1] * size
        for at, there_at, width in columns:
            yield Run(old, first + at * size, old_first + there_at * size, width * size)


def _entries(schema: Schema, *, hidden: bool) -> dict[str, list[tuple[str, int]]]:
    """What entries of a `GroupTokenizer`'s parameters belong to: a group's token, or its hidden layer as token 0."""
    widths = {group: sum(width for _, width in _columns(schema, group).values()) for group in schema.groups}
    found = {
        f"tokenizer.projections.{bucket}": [
            (group, token)
            for group, tokens in schema.groups.items()
            if widths[group] == width
            for token in range(1 if hidden else tokens)
        ]
        for bucket, width in enumerate(sorted(set(widths.values())))
    }
    if hidden:
        found[_OUTPUTS] = [(group, token) for group, tokens in schema.groups.items() for token in range(tokens)]
    return found


def _columns(schema: Schema, group: str) -> dict[str, tuple[int, int]]:
    """Feature -> its first column in what a group's tokens read, and how many it has."""
    found: dict[str, tuple[int, int]] = {}
    start = 0
    for name, feature in schema.features.items():
        if feature.group == group:
            table = getattr(feature, "table", None)
            width = 2 if table is None else schema.tables[table].dim
            found[name] = (start, width)
            start += width
    return found


def _columns_alike(models: Counterparts, group: str, old_group: str) -> Iterator[tuple[int, int, int]]:
    """(first column here, first column there, how many) of the features that a group has here and there."""
    theirs = _columns(models.theirs, old_group)
    for name, (start, width) in _columns(models.mine, group).items():
        old_start, old_width = theirs.get(models.old_name("feature", name), (0, 0))
        if old_width == width and models.feature_problem(name) is None:
            yield start, old_start, width
