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
Ranks: one for each CUDA device, 8 at most; 2 on a machine without. Where so many cannot share the config's batches
evenly, the most that can. Run again, it goes on where it stopped.
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

# CUDA devices that torch sees, which CUDA_VISIBLE_DEVICES may hide; 0 without asking where install.sh chose the CPU.
cuda_devices() {
    grep -q ', cuda, ' .venv/install.stamp || { echo 0; return; }
    "$python" -c 'import torch; print(torch.cuda.device_count())'
}

# The ranks that share a layer, the rows of a batch in training and in evaluation, and the run's folder, from the config
# with its overrides; a mistake in them is told before any work is done.
read_config() {
    "$python" - "$config" "$@" <<'PYTHON_CODE'
from rankmixer_dist.command_line import run_verb
from rankmixer_dist.config import load_config


def show(arguments):
    config = load_config(arguments[0], arguments[1:])
    print(config.parallel.expert_size, config.loader.batch_size, config.eval.batch_size, config.run_dir)


run_verb(show)
PYTHON_CODE
}

# most_ranks AT_MOST EXPERT_SIZE BATCH_SIZE BATCH_SIZE: the most ranks that share batches of both sizes evenly, in whole
# groups of EXPERT_SIZE; 1, which train.py may refuse in words, if none do.
most_ranks() {
    local count
    for ((count = $1; count > 1; count--)); do
        if ((count % $2 == 0 && $3 % count == 0 && $4 % count == 0)); then break; fi
    done
    echo "$count"
}

choose_ranks() {
    local devices wanted
    devices=$(cuda_devices)
    wanted=$((devices == 0 ? 2 : devices > 8 ? 8 : devices))
    ranks=$(most_ranks "$wanted" "$@")
    if ((devices == 0)); then
        export CUDA_VISIBLE_DEVICES= # so that a CPU install on a machine with GPUs stays on the CPU
    fi
    unset RAY_ADDRESS            # this is the machine that prepares the data, not a cluster
    device=$( ((devices)) && echo CUDA || echo CPU)
    if ((ranks < wanted)); then
        printf 'quickstart: %d %s ranks instead of %d, which cannot share batches of %s rows evenly%s\n' \
            "$ranks" "$device" "$wanted" "$2 and $3" "$( (($1 > 1)) && echo " in groups of $1")"
    fi
}

main() {
    case ${1:-} in -h | --help) usage; exit ;; esac
    local settings folder expert_size rows evaluated_rows
    stage "install" bash launch/install.sh
    settings=$(read_config "$@")
    read -r expert_size rows evaluated_rows folder <<<"$settings"
    choose_ranks "$expert_size" "$rows" "$evaluated_rows"
    local start=("$python" launch/torchrun.py --nproc_per_node "$ranks")
    stage "prepare the data" "$python" launch/preprocess.py "$config" "${overrides[@]}"
    stage "train on $ranks $device ranks" "${start[@]}" launch/train.py "$config" "${overrides[@]}"
    stage "evaluate" "${start[@]}" launch/evaluate.py "$config" "${overrides[@]}"
    printf '\nquickstart: done in %d s; the report: %s\n' "$SECONDS" "$folder/report.html"
}

main "$@"
