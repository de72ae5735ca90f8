"""A checkpoint that is not, to the last bit, what was written is never read, and none can run code."""

import io
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from rankmixer_dist.checkpoint.about import About, describe_files, read_about, verify_files
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.storage import read_pieces, read_whole
from rankmixer_dist.errors import UserError
from rankmixer_dist.pieces import Piece

TRIES = 500


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path: Path, random: random.Random) -> str:
    """Damages a file in one of several ways and says which."""
    content = path.read_bytes()
    kind = random.choice(["bit", "byte", "cut", "grow", "missing", "empty"])
    place = random.randrange(len(content))
    if kind == "missing":
        path.unlink()
    elif kind == "bit":
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :])
    elif kind == "byte":
        path.write_bytes(content[:place] + bytes([(content[place] + 1) % 256]) + content[place + 1 :])
    else:
        path.write_bytes({"cut": content[:place], "grow": content + b"\n" * 9, "empty": b""}[kind])
    return f"{kind} at {place} of {path.name}"


def opened(saved: Path) -> tuple[About | None, str]:
    """What opening a checkpoint gives, or with which words it is refused."""
    try:
        return open_checkpoint(saved), ""
    except UserError as error:
        return None, str(error)


def test_500_damaged_checkpoints_are_refused(saved):
    good = {path: path.read_bytes() for path in files(saved)}
    assert {path.name for path in good} == {"checkpoint.json", "index.json", "__0_0.distcp"}
    untouched = open_checkpoint(saved)
    harmless = 0
    for seed in range(TRIES):
        rng = random.Random(seed)
        # Every other time the small file, which says what the others are.
        name = saved / "checkpoint.json" if seed % 2 else rng.choice(list(good))
        what = damage(name, rng)
        found, refusal = opened(saved)
        if found is not None:  # white space and the like may change: what is said must not
            assert found == untouched, what
            assert name.name == "checkpoint.json", what
            harmless += 1
        else:
            assert "\n" not in refusal
            assert "step-00000010" in refusal, "the one before is offered"
        name.write_bytes(good[name])
    assert open_checkpoint(saved) == untouched
    assert harmless < TRIES / 4


def test_without_an_older_one_the_way_out_is_another(saved):
    shutil.rmtree(saved.parent / "step-00000010")
    (saved / "tensors" / "index.json").unlink()
    with pytest.raises(UserError, match=r"index\.json: No such file.*no older checkpoint"):
        open_checkpoint(saved)


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def disguised(bomb: Bomb, saved: Path) -> list[bytes]:
    """The bomb as a plain pickle, as a file of torch.save, and inside a tensor's archive."""
    archive = io.BytesIO()
    torch.save({"x": bomb}, archive)
    patched = io.BytesIO()
    first = io.BytesIO()
    torch.save(torch.zeros(3), first)
    with zipfile.ZipFile(first) as source, zipfile.ZipFile(patched, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, pickle.dumps(bomb) if entry.endswith("data.pkl") else source.read(entry))
    return [pickle.dumps(bomb), archive.getvalue(), patched.getvalue()]


def test_a_malicious_pickle_does_not_run(saved, tmp_path):
    sprung = tmp_path / "sprung"
    bomb = Bomb(sprung)
    pickle.loads(pickle.dumps(bomb))
    assert sprung.exists(), "the bomb works"
    sprung.unlink()
    good = {path: path.read_bytes() for path in files(saved)}
    for content in disguised(bomb, saved):
        for path in good:
            path.write_bytes(content)
            # Whoever can write a pickle can write a checksum.
            if path.name != "checkpoint.json":
                tensors = [each for each in files(saved) if each.parent != saved]
                read_about(saved).model_copy(update={"files": describe_files(saved, tensors)}).write(saved)
                verify_files(saved, read_about(saved).files)
            with pytest.raises(UserError):  # noqa: PT012
                open_checkpoint(saved)
                read_pieces([Piece("tables/video.weight", (20, 3), (0, 0), torch.empty(20, 3))], saved / "tensors")
            with pytest.raises(UserError):  # noqa: PT012
                open_checkpoint(saved)
                read_whole(saved / "tensors")
            assert not sprung.exists()
            for each, bytes_ in good.items():
                each.write_bytes(bytes_)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda index: index.replace("float32", "load"), "not a type of numbers"),
        (lambda index: index.replace('"__0_0.distcp"', '"../../secret"'), "not the name of a file beside it"),
        (lambda index: index.replace('"sizes": [7, 3]', '"sizes": [6, 3]'), "do not cover each of its numbers exactly"),
        (lambda index: index[:-5], "not a readable index"),
        (lambda index: "[]", "not a readable index"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(saved, change, problem):
    path = saved / "tensors" / "index.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(UserError, match=problem):
        read_whole(saved / "tensors")


def test_another_model_is_refused(saved):
    with pytest.raises(UserError, match="does not hold dense/other"):
        read_pieces([Piece("dense/other.weight", (12,), (0,), torch.empty(12))], saved / "tensors")
    with pytest.raises(UserError, match=r"has shape \(12,\), the model's has \(13,\)"):
        read_pieces([Piece("dense/layer.weight", (13,), (0,), torch.empty(13))], saved / "tensors")
