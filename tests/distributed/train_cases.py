"""Run by torchrun: trains several configs one after the other in one process group, through launch/train.py."""

import importlib.util
import json
import sys
from pathlib import Path

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config
from rankmixer_dist.parallel.topology import process_group


def main(arguments: list[str]) -> None:
    """Takes a config file and a JSON list of override lists."""
    spec = importlib.util.spec_from_file_location("train", Path(__file__).parents[2] / "launch" / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    path, cases = arguments
    with process_group() as topology:
        for overrides in json.loads(cases):
            train.run_on(load_config(path, overrides), topology)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    run_verb(main)
