#!/usr/bin/env bash
# Makes .venv beside pyproject.toml and installs into it exactly what pyproject.toml pins.
# When nothing has changed since the last time it ends at once.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$venv/install.log
stamp=$venv/install.stamp         # what is installed: the machine's line, then a hash of the pins
running=$venv/install.running     # there while an install is under way, and after one that was interrupted
made=$venv/install.made           # there when this script made .venv; one made by hand is never removed
unchecked=$venv/install.unchecked # there until the doctor has found nothing bad
compiling=                        # process id of the byte-compiler in the background

usage() {
    cat <<'TEXT'
usage: bash launch/install.sh [--check]

Makes .venv beside pyproject.toml and installs into it what pyproject.toml pins; does nothing when that is done already.

  --check   run launch/doctor.py even when nothing had to be installed

PYTHON=python3.11               the interpreter to make .venv with
RANKMIXER_DEVICE=cpu|cuda       the build of fbgemm to install (by default cuda where nvidia-smi lists a GPU, else cpu)
Where pip takes packages from is pip's own configuration: see `pip config list`.
TEXT
}

fail() {
    printf 'install: %s\n' "$@" >&2
    exit 1
}

version_of() {
    "$1" -c 'import sys; print("{}.{}.{}".format(*sys.version_info[:3]))' 2>/dev/null </dev/null
}

device_kind() {
    case ${RANKMIXER_DEVICE:-} in
        cpu | cuda) echo "$RANKMIXER_DEVICE" ;;
        '') if [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]]; then echo cuda; else echo cpu; fi ;;
        *) fail "RANKMIXER_DEVICE is '$RANKMIXER_DEVICE'; it must be cpu or cuda" ;;
    esac
}

# The interpreter that .venv is, or would be, made with.
python_version() {
    local python=${PYTHON:-python3.11} version
    if [[ -z ${PYTHON:-} ]] && version=$(version_of "$venv/bin/python"); then
        python=$venv/bin/python
    elif ! version=$(version_of "$python"); then
        fail "$python is not there or does not run." \
            "Install Python 3.11 (with the system's package manager, pyenv or conda), or name one: PYTHON=... bash launch/install.sh"
    fi
    [[ $version == 3.11.* ]] || fail "Python 3.11 is needed, but $python is $version." \
        "Name another with PYTHON=...; a .venv of another Python has to be removed first."
    echo "$version"
}

# The requirement lines of one group, out of pyproject.toml.
requirements() {
    "$venv/bin/python" - "$1" "$device" "$root/pyproject.toml" <<'PYTHON_CODE'
import re
import sys
import tomllib

group, device, path = sys.argv[1:]
with open(path, "rb") as file:
    pyproject = tomllib.load(file)
extras = pyproject["project"]["optional-dependencies"]
# torchrec's metadata asks for the CUDA build of fbgemm on every machine; deepspeed's setup.py imports torch.
groups = {"build": pyproject["build-system"]["requires"], "without_dependencies": [*extras[device]], "source": []}
groups["main"] = []
for line in [*pyproject["project"]["dependencies"], *extras["dev"]]:
    name = re.match(r"[\w.-]+", line)[0]
    groups[{"torchrec": "without_dependencies", "deepspeed": "source"}.get(name, "main")].append(line)
print("\n".join(groups[group]))
PYTHON_CODE
}

# stage LABEL COMMAND...: runs the command with its output in the log, and prints one line with the seconds it took.
stage() {
    local label=$1 start=$SECONDS
    shift
    printf 'install: %-44s' "$label"
    printf '\n### %s: %s\n' "$label" "$*" >>"$log"
    if "$@" >>"$log" 2>&1 </dev/null; then
        printf '%4d s\n' $((SECONDS - start))
    else
        echo ' failed'
        explain_failure
    fi
}

explain_failure() {
    local noise
    noise=$(tail -n 15 "$log")
    printf '%s\n' "$noise" | sed 's/^/  | /' >&2
    case $noise in
        *"No matching distribution"* | *"Could not find a version"*)
            fail "pip's package index does not have a pinned version for this machine; see: pip config list" ;;
        *"No space left"*)
            fail "the disk is full; free some space (a CPU install takes 3 GiB, a CUDA install 10), then run this again" ;;
        *ensurepip*)
            fail "this Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3.11-venv" ;;
        *"onnection"* | *"name resolution"* | *"imed out"* | *"CERTIFICATE"*)
            fail "pip cannot reach its package index; see: pip config list. Then run this again" ;;
        *)
            fail "the whole log is in .venv/install.log; mend the cause, then run this again: it starts over cleanly" ;;
    esac
}

pip_install() {
    "$venv/bin/python" -m pip install --no-input --no-compile --progress-bar off --disable-pip-version-check "$@"
}

install_group() {
    local group=$1 lines
    shift
    mapfile -t lines < <(requirements "$group")
    ((${#lines[@]})) && pip_install "$@" "${lines[@]}"
}

# Faster than pip's own, which is serial; the packages' tests and Ray's RLlib are never imported.
start_compiling() {
    local packages=$venv/lib/python3.11/site-packages
    "$venv/bin/python" -m compileall -q -j 0 -x 'site-packages/.*/(tests?|rllib)/' "$packages" >>"$log" 2>&1 </dev/null &
    compiling=$!
}

finish_compiling() {
    wait "$compiling" || true # a template that is no valid Python is no reason to stop
    compiling=
}

make_venv() {
    local python=${PYTHON:-python3.11}
    # The interpreter behind it, should .venv be active: its own one is about to be removed.
    python=$("$python" -c 'import sys; print(sys._base_executable)') ||
        fail "$python is not there or does not run; name a Python 3.11 with PYTHON=..."
    [[ ! -e $venv || -e $made ]] || fail "$venv has to be made anew, but this script did not make it." \
        "Remove it yourself (or make it current by hand), then run this again."
    if [[ -e $venv ]]; then
        local start=$SECONDS
        printf 'install: %-44s' "removing the old environment"
        rm -rf "$venv" # a minute and more on a slow disk that has yet to write it
        printf '%4d s\n' $((SECONDS - start))
    fi
    mkdir "$venv"
    touch "$made" "$running"
    stage "virtual environment" "$python" -m venv "$venv"
}

install_everything() {
    touch "$running" "$unchecked"
    # No precompiled deepspeed kernels: what a run needs of them is built when it is first used. Its setup.py would
    # otherwise also stop on a machine that has a GPU but no CUDA compiler.
    export PIP_USER=0 DS_BUILD_OPS=0 DS_IGNORE_CUDA_DETECTION=1
    stage "build tools" install_group build
    stage "torchrec and fbgemm" install_group without_dependencies --no-deps
    stage "torch, ray and the other packages" install_group main
    start_compiling
    stage "deepspeed, from source" install_group source --no-build-isolation
    stage "rankmixer_dist itself, editable" pip_install --no-deps --no-build-isolation --editable "$root"
    stage "byte code, begun beside the last two" finish_compiling
    printf '%s\n%s\n' "$machine" "$pins" >"$stamp"
    rm "$running"
    echo "install: done in $SECONDS s"
}

check() {
    "$venv/bin/python" "$root/launch/doctor.py" </dev/null || return 1
    rm -f "$unchecked"
}

stop_compiling() {
    [[ -z $compiling ]] || kill "$compiling" 2>/dev/null || true
}

interrupted() {
    printf '\ninstall: interrupted; run this again, it starts over cleanly\n' >&8
    exit 130
}

main() {
    local want_check=no
    case ${1:-} in
        '') ;;
        --check) want_check=yes ;;
        -h | --help) usage; exit ;;
        *) usage >&2; exit 2 ;;
    esac
    [[ $(uname -s) == Linux ]] || fail "fbgemm, and so this project, is built for Linux only"
    exec 8>&2 # inside a stage, standard error is the log
    trap interrupted INT TERM
    trap stop_compiling EXIT

    # Two installs at once would undo each other; whoever comes second finds the work done.
    exec 9<"$root/pyproject.toml"
    if ! flock -n 9; then
        echo "install: waiting for another install of this folder"
        flock 9
    fi

    device=$(device_kind)
    machine="Python $(python_version), $device, $root"
    pins=$(cat "$root/pyproject.toml" "$root/launch/install.sh" | sha256sum)
    if [[ -e $running ]]; then
        echo "install: the last install was interrupted; starting over"
        make_venv
        install_everything
    elif [[ ! -e $venv || (-f $stamp && $(head -n 1 "$stamp") != "$machine") ]]; then
        make_venv
        install_everything
    elif [[ ! -f $stamp || $(tail -n 1 "$stamp") != "$pins" ]]; then
        [[ -x $venv/bin/python ]] || fail ".venv exists but holds no working Python; remove it and run this again"
        install_everything # into what is there, which pip then brings up to date
    else
        echo "install: up to date ($device)"
    fi
    if [[ $want_check == yes || -e $unchecked ]]; then
        check || fail "the lines marked bad above have to be mended; check again with: bash launch/install.sh --check"
    fi
}

main "$@"
