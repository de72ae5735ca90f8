"""What a checkpoint says of itself, and the proof that its bytes are those that were written."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from rankmixer_dist.checksum import file_checksum, file_inside, json_checksum, open_regular
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.identity import DataSeen
from rankmixer_dist.schema import Strict

ABOUT_NAME = "checkpoint.json"
# 2 = it says what its weights mean, and what the run took from its data.
FORMAT_VERSION = 2


class DataPosition(Strict):
    """Rows of epoch `epoch`'s stream, or of that split's, that are done (`batch.Position`)."""

    epoch: NonNegativeInt
    row: NonNegativeInt


class File(Strict):
    """A file of a checkpoint."""

    bytes: NonNegativeInt
    checksum: str


class About(Strict):
    """Everything in a checkpoint that is not a tensor.

    updates: steps of the dense optimizer. moments: kinds of its state, e.g. `exp_avg`. shapes: of the dense parameters,
    whose tensors are stored flat. config: the run's, resolved. metrics: of the evaluation beside it, if there was one.
    files: path below the checkpoint -> size and checksum of every other file. trained_until: Unix ms; no row at or
    after it has been trained on; None where that is not known. identity: checksum of every part of what the weights
    mean (`identity.parts` of `config`). planned_steps: how long the run was to be when it began, which its learning
    rates keep to.
    """

    format_version: int = FORMAT_VERSION
    step: PositiveInt
    rows: NonNegativeInt
    position: DataPosition
    updates: NonNegativeInt
    moments: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    world_size: PositiveInt
    config: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, float] = {}
    trained_until: int | None = None
    identity: dict[str, str] = {}
    data: DataSeen = DataSeen()
    planned_steps: PositiveInt | None = None
    files: dict[str, File] = {}

    def write(self, folder: Path) -> None:
        """Writes `checkpoint.json`, sealed by a checksum of its own content."""
        content = self.model_dump(mode="json")
        with (folder / ABOUT_NAME).open("w") as file:
            file.write(json.dumps({"checksum": json_checksum(content), **content}, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_about(folder: Path) -> About:
    """Reads `checkpoint.json`.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = folder / ABOUT_NAME
    try:
        with open_regular(path) as file:
            content = json.load(file)
        seal = content.pop("checksum", None)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {one_line(error)}") from error
    if seal != json_checksum(content):
        raise UserError(f"{path}: damaged: its content is not what its checksum says")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        older = "; it does not say what its weights mean, so go on with the program that wrote it, or train again"
        raise UserError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}{older if version == 1 else ''}"
        )
    try:
        return About.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"{path}: not a description of a checkpoint: {error.errors()[0]['msg']}") from error


def describe_files(folder: Path, paths: Iterable[Path]) -> dict[str, File]:
    """Sizes and checksums of files below `folder`."""
    return {str(p.relative_to(folder)): File(bytes=p.stat().st_size, checksum=file_checksum(p)) for p in paths}


def verify_files(folder: Path, files: Mapping[str, File]) -> None:
    """Compares the bytes of `files` with their checksums.

    Raises:
        UserError: one is missing or not what was written; names it.
    """
    for name, expected in files.items():
        path = folder / name
        try:
            size = file_inside(folder, name).stat().st_size
            if size != expected.bytes:
                raise UserError(f"{path}: damaged: {size} bytes, {expected.bytes} were written")
            checksum = file_checksum(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        if checksum != expected.checksum:
            raise UserError(f"{path}: damaged: its checksum is not the one it was written with")
