"""All checks together, as a table for people or JSON for machines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from rankmixer_dist.environment import kernels, machine, network, software
from rankmixer_dist.environment.check import Check

CHECKS: tuple[Callable[[], Check], ...] = (
    software.python,
    software.virtual_environment,
    software.project,
    software.torch,
    software.fbgemm,
    kernels.kernels,
    software.torchrec,
    software.deepspeed,
    software.ray,
    software.pyarrow,
    machine.cuda,
    network.gloo,
    network.nccl,
    network.hostname,
    network.loopback,
    machine.cores,
    machine.memory,
    machine.disk,
    machine.shared_memory,
    machine.open_files,
)


def examine(checks: Sequence[Callable[[], Check]] = CHECKS) -> list[Check]:
    """Runs the checks in order, keeping the libraries' own chatter off the screen."""
    with _muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [check() for check in checks]


def exit_code(checks: Sequence[Check]) -> int:
    """0 when nothing is bad, else 1."""
    return int(any(check.verdict == "bad" for check in checks))


def to_json(checks: Sequence[Check]) -> str:
    """`{"ok": bool, "checks": [{"name", "found", "verdict", "mend"}]}`."""
    return json.dumps({"ok": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}, indent=2)


def show(checks: Sequence[Check]) -> None:
    """Prints a table of the checks, then what to do about each line that is not ok."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # the environment is that broken; the table is needed all the more
        for check in checks:
            print(f"{check.verdict:5} {check.name:22} {check.found}")
    else:
        colours = {"ok": "green", "warn": "yellow", "bad": "bold red"}
        table = Table("check", "found", "verdict")
        for check in checks:
            table.add_row(check.name, escape(check.found), f"[{colours[check.verdict]}]{check.verdict}[/]")
        Console(highlight=False).print(table)
    for check in checks:
        if check.verdict != "ok":
            print(f"{check.verdict}: {check.name}: {check.mend}")
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("ok", "warn", "bad")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Sends file descriptors 1 and 2 aside: gloo, glog and deepspeed write past sys.stdout and sys.stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as aside:
        try:
            os.dup2(aside.fileno(), 1)
            os.dup2(aside.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
