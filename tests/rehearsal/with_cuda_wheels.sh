#!/usr/bin/env bash
# Runs the rehearsal's tests with the CUDA wheels, which needs no GPU and no driver. Makes what it needs the first time:
# an environment as launch/install.sh makes it for a machine with GPUs (9 GB), and a stub of the driver's library.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
place=${RANKMIXER_CUDA_WHEELS:-$root/.cuda_wheels}

usage() {
    cat <<'TEXT'
usage: bash tests/rehearsal/with_cuda_wheels.sh [--install-only | pytest's arguments]

Runs pytest, on tests/rehearsal if no path is given, in an environment with torch's and FBGEMM's CUDA builds.

RANKMIXER_CUDA_WHEELS=folder    where that environment is, or is made; .cuda_wheels by default
PYTHON=python3.11               as for launch/install.sh
pip must not prefer a CPU build of torch: where its configuration does, set PIP_CONFIG_FILE=/dev/null and unset
PIP_FIND_LINKS, or whatever names it (see: pip config list).
TEXT
}

fail() {
    printf 'with_cuda_wheels: %s\n' "$@" >&2
    exit 1
}

# The driver's own library is the better one, where there is a driver.
use_stub() {
    if ldconfig -p 2>/dev/null | grep -q libnvidia-ml.so.1; then return; fi
    local compiler
    compiler=$(command -v cc || command -v gcc) || fail "a C compiler is needed, for a stub of the driver's library"
    mkdir -p "$place/stub"
    "$compiler" -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o "$place/stub/libnvidia-ml.so.1" \
        "$root/tests/rehearsal/nvml_stub.c"
    export LD_LIBRARY_PATH=$place/stub${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# install.sh makes the environment beside itself, so it works in a copy and leaves the project's own .venv alone.
install() {
    mkdir -p "$place/project"
    cp -r "$root"/{pyproject.toml,README.md,LICENSE,launch,rankmixer_dist,data_pipeline} "$place/project/"
    RANKMIXER_DEVICE=cuda bash "$place/project/launch/install.sh"
    python=$place/project/.venv/bin/python
    "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
        fail "pip took a CPU build of torch; remove $place/project/.venv, and mend pip's configuration as --help says"
}

case ${1:-} in
    -h | --help) usage; exit ;;
esac
mkdir -p "$place"
place=$(cd "$place" && pwd) # which may have been given from here
use_stub
install
[[ ${1:-} != --install-only ]] || exit 0
paths=tests/rehearsal
for argument in "$@"; do
    [[ ! -e $root/${argument%%::*} ]] || paths=
done
cd "$root"
OMP_NUM_THREADS=1 PYTHONPATH=$root exec "$python" -m pytest -q $paths "$@"
