"""Reads a Dockerfile as far as this project's goes: the steps that docker would take, one after the other."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A `RUN`, a `COPY` or the `CMD`: a shell's line, and for `COPY` the words owner, sources and target."""

    kind: str
    line: str
    folder: str
    user: str
    variables: Mapping[str, str]
    words: tuple[str, ...] = field(default=())


class Dockerfile:
    """A file without stages, heredocs and shell forms of CMD."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
        lines = [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines()]
        self.instructions = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]

    def steps(self, given: Mapping[str, str]) -> Iterator[Step]:
        """The steps with the build arguments given.

        Raises:
            ValueError: an instruction that this reader does not know, or an argument that the file does not.
        """
        unknown = given.keys() - {rest.partition("=")[0] for word, rest in self.instructions if word == "ARG"}
        if unknown:
            raise ValueError(f"no such build argument: {', '.join(sorted(unknown))}")
        folder, user, variables, arguments = "/", "0:0", dict[str, str](), dict[str, str]()
        for word, rest in self.instructions:
            now = arguments | variables
            if word == "ARG":
                name, has_default, default = rest.partition("=")
                if name in given or has_default:
                    arguments[name] = given.get(name, default)
            elif word == "ENV":
                pairs = (pair.partition("=") for pair in shlex.split(rest))
                variables |= {name: _filled(value, now) for name, _, value in pairs}
            elif word == "WORKDIR":
                folder = rest
            elif word == "USER":
                user = rest
            elif word == "RUN":
                yield Step("RUN", re.sub(r"^(--\S+\s+)+", "", rest), folder, user, now)
            elif word == "COPY":
                words = rest.split()
                yield Step("COPY", rest, folder, user, now, (words[0].removeprefix("--chown="), *words[1:]))
            elif word == "CMD":
                yield Step("CMD", shlex.join(json.loads(rest)), folder, user, variables)
            elif word != "FROM":
                raise ValueError(f"{word} is not known here")


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: variables.get(found[1], ""), text)
