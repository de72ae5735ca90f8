#!/usr/bin/env bash
# Installs what is missing, then ruff and the tests. Arguments go to pytest: bash launch/test.sh tests/unit -k config
# With --thorough, tests that take many minutes are run too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash launch/install.sh
python=$root/.venv/bin/python

"$python" -m ruff check .

# Two OpenMP threads spin for each other on the small tensors of the tests; on a machine that has other work to do one
# test took 279 s with two threads and 11 s with one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# A collective that waits for a rank which is gone must fail its test, not the hour. The summary stays the last word.
exec "$python" -m pytest --timeout=300 --durations=10 "$@" </dev/null
