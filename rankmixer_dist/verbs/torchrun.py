"""Starts the ranks of a verb on one host or on several, with torchrun's options."""

import sys

from rankmixer_dist.command_line import as_typed
from rankmixer_dist.imports import large_imports
from rankmixer_dist.verbs import VERBS

USAGE = """\
usage: python launch/torchrun.py --nproc_per_node RANKS [OPTION ...] launch/VERB.py CONFIG [section.key=value ...]

python launch/torchrun.py --nproc_per_node 2 launch/train.py configs/quickstart.yaml
python launch/torchrun.py --nproc_per_node 2 --max_restarts 3 launch/train.py configs/quickstart.yaml

On one host nothing listens to the network: the launcher and its ranks meet in a file without a name and on the
loopback. The exit code is the ranks': 2 after a mistake, which is not started again, and 75 after a stop. The options
are torchrun's, which --help shows. Several hosts: launch/cluster/torchrun_multinode.sh.
"""


def main(arguments: list[str]) -> None:
    """Starts the ranks; does not come back."""
    if not arguments:
        print(as_typed(USAGE), file=sys.stderr)
        sys.exit(2)
    if arguments[0] in ("-h", "--help"):
        print(as_typed(USAGE), flush=True)
    # Imported late: torch takes seconds.
    with large_imports():
        from rankmixer_dist.parallel.launcher import launch

    launch(arguments, verbs=VERBS)
