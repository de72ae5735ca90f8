"""Wrong inputs: configs, overrides, and files in the folders of a run, by name."""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path


def without_features(config: str) -> str:
    """A config's text without that section."""
    return re.sub(r"(?ms)^features:.*?(?=^\S)", "", config)


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghij")
)

CONFIGS: dict[str, tuple[bytes | Callable[[str], str], str]] = {
    # A file's bytes, or what is made of a good config's text -> a word of the line.
    "empty": (b"", "not a mapping"),
    "binary": (bytes(range(256)) * 8, "not UTF-8"),
    "NUL": (b"\0\0\0", "control characters"),
    "latin-1": ("name: caf\xe9\n".encode("latin-1"), "line 1 is not UTF-8"),
    "UTF-16": ("name: x\n".encode("utf-16"), "line 1 is not UTF-8"),
    "a tab": (b"name: x\n\tseed: 1\n", "not with tabs"),
    "an open bracket": (b"name: [x\n", "line 2, column 1"),
    "an open quote": (b"name: 'x\n", "end of stream"),
    "an alias bomb": (BOMB.encode(), "write out to too much"),
    "an alias of itself": (b"a: &a [*a]\n", "recursive aliases"),
    "deep lists": (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    "deep mappings": (b"a: " + b"{a: " * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
    "a key twice": (lambda good: f"{good}\nname: again\n", "duplicate key name"),
    "a list": (b"- 1\n- 2\n", "not a mapping"),
    "a number": (b"3\n", "not a mapping"),
    "a word": (b"hello\n", "not a mapping"),
    "null": (b"null\n", "not a mapping"),
    "two documents": (b"name: x\n---\nname: y\n", "another document"),
    "a tag of Python": (b"name: !!python/object/apply:os.system ['true']\n", "constructor for the tag"),
    "another tag": (b"name: !x y\n", "constructor for the tag"),
    "10**5000": (lambda good: f"{good}\nstream: {{keep_windows: {'9' * 5000}}}\n", "too many digits"),
    "10**30": (lambda good: f"{good}\nstream: {{keep_windows: {'9' * 30}}}\n", "does not fit 64 bits"),
    "1e400": (lambda good: f"{good}\nstream: {{poll_s: 1e400}}\n", "stream.poll_s: inf is not finite"),
    "infinity": (lambda good: f"{good}\nstream: {{poll_s: .inf}}\n", "stream.poll_s: inf is not finite"),
    "not a number": (lambda good: f"{good}\nstream: {{poll_s: .nan}}\n", "stream.poll_s: nan is not finite"),
    "a date": (lambda good: f"{good}\nstream: {{poll_s: 2026-01-01}}\n", "stream.poll_s"),
    "a NUL in a path": (lambda good: f'{good}\nstream: {{shards: "a\\0b"}}\n', "stream.shards"),
    "no environment variable": (lambda good: f"{good}\nstream: {{poll_s: '${{oc.env:NOT_SET}}'}}\n", "NOT_SET"),
    "an unknown interpolation": (lambda good: f"{good}\nstream: {{poll_s: '${{nothing.there}}'}}\n", "nothing.there"),
    "an interpolation of itself": (lambda good: f"{good}\nstream: {{poll_s: '${{stream.poll_s}}'}}\n", "ecursi"),
    "an open interpolation": (lambda good: f"{good}\nstream: {{poll_s: '${{'}}\n", "poll_s"),
    "an unknown resolver": (lambda good: f"{good}\nstream: {{poll_s: '${{no.such:1}}'}}\n", "no.such"),
    "a key that is a number": (lambda good: f"{good}\n1: 2\n", "1: "),
    "a key that is null": (lambda good: f"{good}\nnull: 2\n", "key type"),
    "a key that is a list": (lambda good: f"{good}\n[a, b]: 2\n", "unhashable key"),
    "a merge of a number": (lambda good: f"{good}\nstream: {{<<: 3}}\n", "merging"),
    "extends nothing": (b"extends: none.yaml\n", "none.yaml: no such file"),
    "extends a list": (b"extends: [a, b]\n", "names no file"),
    "extends a folder": (b"extends: ..\n", "is a folder"),
    "extends itself": (b"extends: config.yaml\n", "which extends it"),
    "extends a variable": (b"extends: '${oc.env:NOT_SET}'\n", "NOT_SET"),
    "features of a folder": (lambda good: f"{without_features(good)}features: ..\n", "is a folder"),
    "features that extend a list": (
        lambda good: f"{without_features(good)}features: {{extends: [1]}}\n",
        "names no file",
    ),
    "a name that is a path": (lambda good: good.replace("name: ", "name: ../", 1), "name: String should match"),
    "a long name": (lambda good: good.replace("name: ", f"name: {'a' * 300}", 1), "at most 200"),
    "an escape in a name": (lambda good: good.replace("name: ", 'name: "\\e[31m" #', 1), "name: String should match"),
}

OVERRIDES: dict[str, str] = {
    "=value": "not of the form",
    "train.epochs": "not of the form",
    "train.epochs=": "train.epochs",
    "train.epochs=[1": "override 'train.epochs=[1'",
    "train.epochs={a: 1": "override 'train.epochs={a: 1'",
    "train.epochs=\t3": "not with tabs",
    "train.epochs='": "end of stream",
    "train.epochs=*a": "undefined alias",
    "train.epochs=!x 3": "constructor for the tag",
    "train.epochs=1e400": "train.epochs: inf is not finite",
    f"train.epochs={'9' * 5000}": "too many digits",
    f"train.epochs={'9' * 30}": "does not fit 64 bits",
    "train.epochs=${": "override 'train.epochs=${'",
    "train.epochs=${train.epochs}": "ecursi",
    "train.epochs=${oc.env:NOT_SET}": "NOT_SET",
    "train.epochs=???": "stands for no value",
    "train.epochs=a\0b": "control characters",
    "train.epochs.x=3": "train.epochs",
    "train.epochz=3": "did you mean 'epochs'",
    "train=3": "train: ",
    "train[0]=1": "unknown key train.0",
    "a..b=1": "unknown key a",
    "[0]=1": "unknown key 0",
    "." * 3000 + "=1": "nested too deeply",
    "train.epochs=" + "[" * 3000: "override 'train.epochs=[[[",
    "features=none.yaml": "none.yaml: no such file",
    "features=..": "is a folder",
    "features=[": "override 'features=['",
    "extends=x.yaml": "unknown key extends",
    "seed=-1": "seed: Input should be greater than or equal to 0",
    "name=a/b": "name: String should match",
    "data.splits.train=null": "data.splits.train",
    "data.splits.train.start=1e400": "data.splits.train.start: inf",
    "train.split=[]": "split is empty",
    "train.split=nowhere": "not one of data.splits",
    "eval.split=nowhere": "not one of data.splits",
    "sparse.lr=nan": "sparse.lr",
}

DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]) and None,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8) and None,
    "latin-1": lambda path: path.write_bytes("caf\xe9: 1".encode("latin-1")) and None,
    "a list": lambda path: path.write_text("[1, 2]\n[3]\n") and None,
    "a number": lambda path: path.write_text("3\n3\n") and None,
    "a text": lambda path: path.write_text('"x"\n"y"\n') and None,
    "null": lambda path: path.write_text("null\nnull\n") and None,
    "a huge number": lambda path: path.write_text("9" * 5000 + "\n1\n") and None,
    "deep": lambda path: path.write_text("[" * 100_000 + "\n1\n") and None,
    "another mapping": lambda path: path.write_text('{"a": 1}\n{"b": 2}\n') and None,
    "texts for numbers": lambda path: path.write_text('{"step": "x", "seed": "y", "rows": "z"}\n{}\n') and None,
}
"""What can become of a file's bytes."""


def as_folder(path: Path) -> None:
    """A folder in the place of a file."""
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    """A named pipe that nobody writes into, in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def as_lost_link(path: Path) -> None:
    """A link to nothing in the place of a file."""
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def as_circle(path: Path) -> None:
    """A link to itself in the place of a file."""
    path.unlink()
    path.symlink_to(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "a folder": as_folder,
    "a pipe": as_pipe,
    "a lost link": as_lost_link,
    "a circle": as_circle,
}
"""What can lie in the place of a file."""
