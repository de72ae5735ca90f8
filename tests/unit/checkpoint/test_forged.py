"""A checkpoint whose seal fits, made by a stranger or a faulty writer: refused in one line and at once, or the same
values."""

import copy
import io
import itertools
import json
import math
import os
import random
import time
import zipfile
from pathlib import Path

import pytest
import torch

from rankmixer_dist.checkpoint.about import describe_files, read_about
from rankmixer_dist.checkpoint.index import covers_once
from rankmixer_dist.checkpoint.opening import open_checkpoint
from rankmixer_dist.checkpoint.storage import read_pieces, read_whole
from rankmixer_dist.errors import UserError
from rankmixer_dist.pieces import Piece, whole
from rankmixer_dist.train import checkpoint as train_checkpoint

NUMBERS = [-1, 1, 2**40, 2**70, 1.0, True, "3", None, [], {}]
PATIENCE_S = 20.0
"""Of the processor: a busy machine takes longer, and what waits for ever ends by the time-out of all tests."""


def seal(saved: Path) -> None:
    """Whoever can write a file can write its checksum."""
    files = [path for path in (saved / "tensors").iterdir() if path.is_file() and not path.is_symlink()]
    read_about(saved).model_copy(update={"files": describe_files(saved, files)}).write(saved)


def loaded(saved: Path) -> dict[str, list] | str:
    """The values that are read, or with which line they are refused."""
    start = time.process_time()
    try:
        open_checkpoint(saved)
        table = Piece("tables/video.weight", (20, 3), (0, 0), torch.empty(20, 3))
        layer = whole("dense/layer.weight", torch.empty(12))
        read_pieces([table, layer], saved / "tensors")
        values = read_whole(saved / "tensors")
        assert torch.equal(values[table.key], table.tensor) and torch.equal(values[layer.key], layer.tensor)
        return {key: tensor.tolist() for key, tensor in values.items()}
    except UserError as error:
        line = str(error)
    finally:
        assert time.process_time() - start < PATIENCE_S
    assert "\n" not in line
    return line


def places(value, at=()):
    """Where each value inside of lists and mappings is."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


def changed(index: dict, rng: random.Random) -> dict:
    """The index with one thing in it that is different."""
    index = copy.deepcopy(index)
    *way, last = rng.choice([*places(index["tensors"])])
    holder = index["tensors"]
    for key in way:
        holder = holder[key]
    value = holder[last]
    what = rng.choice(["gone", "twice", "other"])
    if what == "gone":
        del holder[last]
    elif what == "twice":
        if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(value))
        else:
            holder[f"{last}x"] = copy.deepcopy(value)
    elif isinstance(value, int):
        holder[last] = rng.choice([value - 1, value + 1, -value, value * 2, *NUMBERS])
    elif isinstance(value, str):
        strings = ["int32", "complex64", "float64", "load", "", "..", "/dev/zero", "index.json", value + "\0", 7]
        holder[last] = rng.choice(strings)
    else:
        holder[last] = rng.choice([value[::-1] if isinstance(value, list) else [], *NUMBERS])
    return index


def test_400_changed_indexes(saved):
    path = saved / "tensors" / "index.json"
    index, expected = json.loads(path.read_text()), loaded(saved)
    refused = 0
    for seed in range(400):
        other = changed(index, random.Random(seed))
        path.write_text(json.dumps(other))
        seal(saved)
        found = loaded(saved)
        if isinstance(found, str):
            refused += 1
            assert "step-00000010" in found or str(path.parent) in found
        else:
            # A tensor more or less that nobody asks for, or its pieces in another order.
            assert {**expected, **found} == expected | found and found.items() <= expected.items(), (seed, other)
    assert refused > 330


def test_changed_bytes_beside_the_numbers(saved):
    path = saved / "tensors" / "__0_0.distcp"
    good, expected = path.read_bytes(), loaded(saved)
    layer = next(
        each["chunks"][0]
        for key, each in json.loads((saved / "tensors" / "index.json").read_text())["tensors"].items()
        if key == "dense/layer.weight"
    )
    archive = good[layer["start"] : layer["start"] + layer["bytes"]]
    with zipfile.ZipFile(io.BytesIO(archive)) as entries:
        numbers = entries.read("archive/data/0")
    first = archive.index(numbers)
    beside = [place for place in range(len(archive)) if not first <= place < first + len(numbers)]
    refused = 0
    for seed, place in enumerate(beside[::6]):
        content = bytearray(good)
        content[layer["start"] + place] ^= 1 << random.Random(seed).randrange(8)
        path.write_bytes(content)
        seal(saved)
        found = loaded(saved)
        refused += isinstance(found, str)
        assert isinstance(found, str) or found == expected, place
    assert refused > 30


def replace_archive(saved: Path, key: str, content: bytes, **changes) -> None:
    """Lays another archive where a tensor's was, at the end of its file."""
    path, index_path = saved / "tensors" / "__0_0.distcp", saved / "tensors" / "index.json"
    index = json.loads(index_path.read_text())
    index["tensors"][key] |= changes
    (chunk,) = index["tensors"][key]["chunks"]
    chunk |= {"start": path.stat().st_size, "bytes": len(content)}
    with path.open("ab") as file:
        file.write(content)
    index_path.write_text(json.dumps(index))
    seal(saved)


def archive_of(value) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


STRANGERS = {
    "complex": torch.zeros(12, dtype=torch.complex64),
    "double": torch.zeros(12, dtype=torch.float64),
    "longer": torch.zeros(13),
    "square": torch.zeros(3, 4),
    "spread": torch.zeros(1).expand(12),
    "sparse": torch.zeros(12).to_sparse(),
    "no tensor": [0.0] * 12,
    "part": torch.zeros(24)[:12],
    "every other": torch.zeros(24)[::2],
}


@pytest.mark.parametrize("name", STRANGERS)
def test_another_kind_of_tensor_in_its_place(saved, name):
    replace_archive(saved, "dense/layer.weight", archive_of(STRANGERS[name]))
    assert isinstance(found := loaded(saved), str), found


def test_a_type_that_the_model_does_not_have(saved):
    replace_archive(saved, "dense/layer.weight", archive_of(torch.zeros(12, dtype=torch.float64)), dtype="float64")
    assert "dense/layer.weight has type torch.float64, the model's has torch.float32" in loaded(saved)


def packed(pickled: bytes, numbers: int) -> bytes:
    """An archive that says it holds many zeros, of which little is written."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(numbers // 2**20):
                entry.write(bytes(2**20))
    return content.getvalue()


@pytest.mark.parametrize("what", ["deflated", "asks"])
def test_a_small_file_takes_no_large_memory(saved, what):
    with zipfile.ZipFile(io.BytesIO(archive_of(torch.zeros(12)))) as plain:
        pickled = plain.read("archive/data.pkl")
    if what == "asks":  # a pickle for 6 GB of zeros
        pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (6 * 2**30).to_bytes(5, "little") + b"\x85R."
    numbers = 2**28 if what == "deflated" else 2**20
    before = memory()
    replace_archive(saved, "dense/layer.weight", packed(pickled, numbers))
    assert isinstance(loaded(saved), str)
    stored = archive_of(torch.zeros(12)) if what == "deflated" else stored_archive(pickled)
    replace_archive(saved, "dense/layer.weight", stored)
    assert isinstance(loaded(saved), str) == (what == "asks")
    assert memory() - before < 2**27


def stored_archive(pickled: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in (("data.pkl", pickled), ("version", b"3\n"), ("data/0", bytes(48))):
            archive.writestr(f"archive/{name}", part)
    return content.getvalue()


def memory() -> int:
    """The most bytes that this process has had in memory."""
    return int(next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM")).split()[1]) * 1024


def test_an_index_of_100_000_tensors_in_the_same_bytes(saved):
    path = saved / "tensors" / "index.json"
    index = json.loads(path.read_text())
    one = index["tensors"]["dense/layer.weight"]
    index["tensors"] |= {f"dense/more-{number}.weight": one for number in range(100_000)}
    path.write_text(json.dumps(index))
    seal(saved)
    assert "lie in the same bytes of __0_0.distcp" in loaded(saved)


@pytest.mark.parametrize("name", ["../../step-00000010/tensors/__0_0.distcp", "/dev/zero", "pipe", "link", "."])
def test_files_elsewhere_and_what_is_no_file(saved, name, tmp_path):
    os.mkfifo(saved / "tensors" / "pipe")
    (saved / "tensors" / "link").symlink_to(saved.parent / "step-00000010" / "tensors" / "__0_0.distcp")
    index_path = saved / "tensors" / "index.json"
    good = index_path.read_text()
    index_path.write_text(good.replace("__0_0.distcp", name))
    seal(saved)
    assert isinstance(loaded(saved), str)
    index_path.write_text(good)  # the description alone names it
    seal(saved)
    assert not isinstance(loaded(saved), str)
    about = read_about(saved)
    about.model_copy(update={"files": {**about.files, f"tensors/{name}": about.files["tensors/index.json"]}}).write(
        saved
    )
    assert isinstance(loaded(saved), str)


@pytest.mark.parametrize("name", ["checkpoint.json", "tensors/index.json", "tensors/__0_0.distcp"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert "not a regular file" in loaded(saved)


def test_a_deep_nest_is_no_description(saved):
    for name in ("checkpoint.json", "tensors/index.json"):
        (saved / name).write_text("[" * 100_000)
        if name != "checkpoint.json":
            break
        assert "damaged" in loaded(saved)


def test_a_file_that_is_not_sealed(saved):
    (saved / "tensors" / "other").write_bytes((saved / "tensors" / "__0_0.distcp").read_bytes())
    index = saved / "tensors" / "index.json"
    index.write_text(index.read_text().replace("__0_0.distcp", "other"))
    about = read_about(saved)
    kept = {name: file for name, file in about.files.items() if name != "tensors/index.json"}
    about.model_copy(update={"files": kept | describe_files(saved, [index])}).write(saved)
    assert "that are not sealed" in loaded(saved)


def brute_force(shape, boxes) -> bool:
    times = torch.zeros(shape, dtype=torch.int64)
    for offsets, sizes in boxes:
        if any(
            offset + size > length
            for offset, size, length in zip(offsets, sizes, shape, strict=True)
            if math.prod(sizes)
        ):
            return False
        times[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))] += 1
    return bool((times == 1).all())


def test_boxes_cover_a_shape_exactly_as_counting_says():
    rng = random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(3000):
        shape = tuple(rng.randrange(1, 4) for _ in range(rng.randrange(1, 4)))
        cuts = [sorted({0, length, rng.randrange(length + 1)}) for length in shape]
        boxes = []
        for ends in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
            boxes.append(([start for start, _ in ends], [end - start for start, end in ends]))
        for _ in range(rng.randrange(3)):
            box, axis = rng.choice(boxes), rng.randrange(len(shape))
            box[rng.randrange(2)][axis] = rng.randrange(4)
        found = covers_once(shape, boxes)
        assert found == brute_force(shape, boxes), (shape, boxes)
        seen[found] += 1
    assert min(seen.values()) > 500
    assert covers_once((), [((), ())]) and not covers_once((), []) and not covers_once((), [((), ())] * 2)
    assert covers_once((0, 3), []) and covers_once((0, 3), [((0, 0), (0, 3))])


@pytest.mark.parametrize("moments", [(), ("exp_avg", "exp_avg_sq"), ("../x",)])
def test_moments_other_than_those_it_holds(saved, one_rank, moments):
    module = torch.nn.Module()
    module.layer = torch.nn.Parameter(torch.zeros(3, 4))
    assert train_checkpoint._open(saved, module, one_rank).moments == ("exp_avg",)
    read_about(saved).model_copy(update={"moments": moments}).write(saved)
    with pytest.raises(UserError, match=r"is said to hold \[.*\], but holds \['exp_avg'\]"):
        train_checkpoint._open(saved, module, one_rank)
