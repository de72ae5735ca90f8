"""launch/train.py on a disk that takes 0.6 s for each row group."""

import time
from typing import Any

import pyarrow.parquet as pq

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.verbs.train import main

read = pq.ParquetFile.read_row_group


def slow_read(*arguments: Any, **options: Any) -> Any:
    """As `read_row_group`, later."""
    time.sleep(0.6)
    return read(*arguments, **options)


if __name__ == "__main__":
    pq.ParquetFile.read_row_group = slow_read
    run_verb(main)
