"""launch/train.py on a disk that takes 0.6 s for each row group, which are read step by step."""

import time

import pyarrow as pa

from data_pipeline import loader
from data_pipeline.loader import _Chunks
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.verbs.train import main

load = _Chunks._load


def slow_load(chunks: _Chunks, chunk: int) -> pa.Table:
    """As `_Chunks._load`, later."""
    time.sleep(0.6)
    return load(chunks, chunk)


if __name__ == "__main__":
    _Chunks._load = slow_load
    loader._ROWS_AT_ONCE = 1
    run_verb(main)
