#!/usr/bin/env bash
# From nothing to a report: installs, prepares synthetic logs, trains on all ranks of this machine and evaluates.
# Arguments section.key=value go to every verb: bash launch/quickstart.sh train.epochs=2 name=twice
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
config=configs/quickstart.yaml
overrides=("$@")
python=$root/.venv/bin/python

usage() {
    cat <<TEXT
usage: bash launch/quickstart.sh [section.key=value ...]

Installs (once), then runs preprocess.py, train.py and evaluate.py on $config, with the given changes to it.
Ranks: one for each CUDA device, 8 at most; 2 on a machine without. Run again, it goes on where it stopped.
TEXT
}

# stage LABEL COMMAND...: runs the command in full view, then says how long it took.
stage() {
    local label=$1 start=$SECONDS code=0
    shift
    printf '\n== %s\n' "$label"
    "$@" </dev/null || code=$?
    if ((code != 0)); then
        printf 'quickstart: %s failed (exit code %d); mend it, then run this again: it goes on from there\n' "$label" "$code" >&2
        exit "$code"
    fi
    printf '== %s: %d s\n' "$label" $((SECONDS - start))
}

# Devices that torch will see: install.sh noted what this machine is, CUDA_VISIBLE_DEVICES may hide some.
cuda_devices() {
    grep -q ', cuda, ' .venv/install.stamp || { echo 0; return; }
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^-]' || true
    else
        nvidia-smi -L | grep -c '^GPU' || true
    fi
}

# The run's folder, from the config with its overrides; a mistake in them is told before any work is done.
run_folder() {
    "$python" - "$config" "$@" <<'PYTHON_CODE'
from rankmixer_dist.config import load_config
from rankmixer_dist.command_line import run_verb

run_verb(lambda arguments: print(load_config(arguments[0], arguments[1:]).run_dir))
PYTHON_CODE
}

choose_ranks() {
    local devices
    devices=$(cuda_devices)
    ranks=$((devices > 8 ? 8 : devices))
    if ((devices == 0)); then
        ranks=2
        export CUDA_VISIBLE_DEVICES= # so that a CPU install on a machine with GPUs stays on the CPU
    fi
    unset RAY_ADDRESS            # this is the machine that prepares the data, not a cluster
    device=$( ((devices)) && echo CUDA || echo CPU)
}

main() {
    case ${1:-} in -h | --help) usage; exit ;; esac
    local folder
    stage "install" bash launch/install.sh
    folder=$(run_folder "$@")
    choose_ranks
    local start=("$python" launch/torchrun.py --nproc_per_node "$ranks")
    stage "prepare the data" "$python" launch/preprocess.py "$config" "${overrides[@]}"
    stage "train on $ranks $device ranks" "${start[@]}" launch/train.py "$config" "${overrides[@]}"
    stage "evaluate" "${start[@]}" launch/evaluate.py "$config" "${overrides[@]}"
    printf '\nquickstart: done in %d s; the report: %s\n' "$SECONDS" "$folder/report.html"
}

main "$@"
