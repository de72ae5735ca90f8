"""`rankmixer VERB ...`: one command for all verbs, each of which is loaded only when it is asked for."""

import argparse
import ast
import importlib
import sys
from pathlib import Path
from typing import NoReturn

import rankmixer_dist
from rankmixer_dist.command_line import run_verb, started_by_name
from rankmixer_dist.errors import UserError, nearest
from rankmixer_dist.verbs import VERBS


def main() -> NoReturn:
    """Runs the verb that the command line names, and ends as it does."""
    started_by_name()
    run_verb(run)


def run(arguments: list[str]) -> int | None:
    """Takes a verb and its arguments.

    Raises:
        UserError: no verb has that name, or as the verb does.
    """
    own = []
    while arguments and arguments[0].startswith("--local_rank"):  # deepspeed --module puts it in front of the verb
        own.append(arguments.pop(0))
    if not arguments:
        _parser().print_help(sys.stderr)
        return 2
    verb, *rest = arguments
    if verb.startswith("-"):
        _parser().parse_args(arguments)
    if verb not in VERBS:
        raise UserError(f"{verb}: no such verb{nearest(verb, VERBS)}; rankmixer --help lists them")
    return importlib.import_module(f"rankmixer_dist.verbs.{verb}").main([*own, *rest])


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {verb:16} {_first_line(verb)}" for verb in VERBS]
    parser = argparse.ArgumentParser(
        prog="rankmixer",
        usage="rankmixer VERB ...\n       rankmixer VERB --help",
        description="\n".join(["Verbs:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rankmixer_dist {rankmixer_dist.__version__}")
    return parser


def _first_line(verb: str) -> str:
    """What a verb's module says of itself, without loading it."""
    source = Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
