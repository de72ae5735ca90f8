#!/usr/bin/env bash
# Installs what is missing, then ruff and the tests. Arguments go to pytest: bash launch/test.sh tests/unit -k config
# With --thorough, tests that take many minutes are run too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash launch/install.sh
python=$root/.venv/bin/python

"$python" -m ruff check .

# A collective that waits for a rank which is gone must fail its test, not the hour. The summary stays the last word.
exec "$python" -m pytest --timeout=300 --durations=10 "$@" </dev/null
