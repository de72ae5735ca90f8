"""`rankmixer doctor` as a file, which finds this source tree where no project or another copy of it is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.verbs.doctor import main

if __name__ == "__main__":
    run_verb(main)
