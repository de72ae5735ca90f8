"""Lets the tests import what bench.py measures with."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "launch"))
