#!/usr/bin/env bash
# Installs what is missing, then ruff, mypy and the tests. Arguments go to pytest: bash launch/test.sh tests/unit -k config
# With --thorough, tests that take many minutes are run too; with -n 0, one after the other in one process.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash launch/install.sh
python=$root/.venv/bin/python

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy

# Two OpenMP threads spin for each other on the small tensors of the tests; on a machine that has other work to do one
# test took 279 s with two threads and 11 s with one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Two workers, for much of the time goes into waiting for ranks and verbs to start; a file stays on one worker, since its
# tests share what they have trained. The files with ranks come first, so that no worker ends with a long one alone.
# A collective that waits for a rank which is gone must fail its test, not the hour. The summary stays the last word.
workers=(-n 2 --dist loadfile --no-loadscope-reorder)
exec "$python" -m pytest "${workers[@]}" --timeout=300 --durations=10 "$@" </dev/null
