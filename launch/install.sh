#!/usr/bin/env bash
# Makes .venv beside pyproject.toml and installs into it what pyproject.toml asks for, in the tested versions.
# When nothing has changed since the last time it ends at once.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$venv/install.log
stamp=$venv/install.stamp         # what is installed: the machine's line, then a hash of the pins
running=$venv/install.running     # there while an install is under way, and after one that was interrupted
constraints=$root/rankmixer_dist/environment/constraints.txt
made=$venv/install.made           # there when this script made .venv; one made by hand is never removed
unchecked=$venv/install.unchecked # there until the doctor has found nothing bad
compiling=                        # process id of the byte-compiler in the background
pythons=(3.14 3.13 3.12 3.11)     # what pyproject.toml allows, the newest first

usage() {
    cat <<'TEXT'
usage: bash launch/install.sh [--check | --packages]

Makes .venv beside pyproject.toml and installs into it what pyproject.toml asks for, in the versions of
rankmixer_dist/environment/constraints.txt; does nothing when that is done already.

  --check      run launch/doctor.py even when nothing had to be installed
  --packages   install all but this project, and leave the check to the next run: an image's layer that stays as it is
               while pyproject.toml, the constraints and this script do; these three are all it needs

PYTHON=python3.12               the interpreter to make .venv with (by default the newest of 3.11 to 3.14 that runs)
RANKMIXER_DEVICE=cpu|cuda       the build of fbgemm to install (by default cuda where nvidia-smi lists a GPU, else cpu);
                                cuda also succeeds on a machine without a GPU, to build an image for one that has some
Where pip takes packages from is pip's own configuration: see `pip config list`; for torch's CPU build docs/machines.md.
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

is_allowed() {
    [[ " ${pythons[*]} " == *" ${1%.*} "* ]]
}

# Whether it can make virtual environments, as Debian's cannot without python3-venv, and load the wheels that are made
# for most: those of a build without the global lock are others.
is_complete() {
    "$1" -c 'import ensurepip, ssl, sys, venv; sys.exit(not getattr(sys, "_is_gil_enabled", lambda: True)())' \
        >/dev/null 2>&1 </dev/null
}

# The newest interpreter on the PATH that runs and is allowed, as its full path; one that is not complete comes last. A
# name may be there several times: pyenv has one for every version that it ever installed, and most of these do not run.
find_python() {
    local name path version second=
    for name in "${pythons[@]/#/python}" python3 python; do
        while read -r path; do
            if ! version=$(version_of "$path") || ! is_allowed "$version"; then continue; fi
            if is_complete "$path"; then
                echo "$path"
                return
            fi
            second=${second:-$path}
        done < <(type -aP "$name")
    done
    [[ -n $second ]] && echo "$second"
}

# Sets python and version: the interpreter that .venv is, or would be, made with.
choose_python() {
    local needed="Python 3.11, 3.12, 3.13 or 3.14 is needed"
    local -a mend=("Install one (Debian 12, Ubuntu 24.04 and later: apt-get install python3 python3-venv; Fedora and its"
        "relatives: dnf install python3.12; else pyenv or conda), or name one: PYTHON=... bash launch/install.sh")
    if [[ -n ${PYTHON:-} ]]; then
        python=$PYTHON
        version=$(version_of "$python") || fail "$python is not there or does not run; $needed." "${mend[@]}"
        is_allowed "$version" || fail "$needed, but $python is $version." "${mend[@]}"
    elif version=$(version_of "$venv/bin/python"); then
        python=$venv/bin/python
        is_allowed "$version" || fail "$needed, but .venv is of Python $version; remove .venv, then run this again."
    else
        python=$(find_python) || fail "$needed, and none is on the PATH$(other_python)." "${mend[@]}"
        version=$(version_of "$python")
    fi
}

other_python() {
    local version
    version=$(version_of python3) && echo " (python3 is $version)"
}

# The requirement lines of one group: what pyproject.toml asks for, in the versions of the constraints.
requirements() {
    "$venv/bin/python" - "$1" "$device" "$root/pyproject.toml" "$constraints" <<'PYTHON_CODE'
import re
import sys
import tomllib

group, device, path, constraints = sys.argv[1:]
with open(path, "rb") as file:
    pyproject = tomllib.load(file)
with open(constraints) as file:
    versions = dict(line.strip().split("==") for line in file if "==" in line)
extras = pyproject["project"]["optional-dependencies"]
# torchrec's metadata asks for the CUDA build of fbgemm on every machine; deepspeed's setup.py imports torch.
groups = {"build": [], "without_dependencies": [f"torchrec=={versions['torchrec']}"], "source": [], "main": []}
asked = [(line, "build") for line in pyproject["build-system"]["requires"]]
asked += [(line, "without_dependencies") for line in extras[device]]
asked += [(line, "main") for line in [*pyproject["project"]["dependencies"], *extras["dev"]]]
for line, place in asked:
    name, options = re.match(r"([\w.-]+)(\[[^]]*\])?", line).groups("")
    if name != "torchrec":
        groups["source" if name == "deepspeed" else place].append(f"{name}{options}=={versions[name]}")
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
    local noise unreachable="pip cannot reach its package index; see: pip config list. Then run this again"
    noise=$(tail -n 15 "$log")
    printf '%s\n' "$noise" | sed 's/^/  | /' >&2
    case $noise in
        *"connection broken"*"from versions: none"* | *"SSLError"*"from versions: none"*) # which pip tells as one missing
            fail "$unreachable" ;;
        *"No matching distribution"* | *"Could not find a version"*)
            fail "pip's package index does not have a pinned version for this machine; see: pip config list" ;;
        *"No space left"*)
            fail "the disk is full; free some space (10 GiB, or 3 for torch's CPU build), then run this again" ;;
        *ensurepip* | *"No module named venv"*)
            fail "$python cannot make virtual environments; Debian, Ubuntu: apt-get install python${version%.*}-venv" ;;
        *"onnection"* | *"name resolution"* | *"imed out"* | *"CERTIFICATE"*)
            fail "$unreachable" ;;
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
    "$venv/bin/python" -m compileall -q -j 0 -x 'packages/.*/(tests?|rllib)/' "$venv/lib" >>"$log" 2>&1 </dev/null &
    compiling=$!
}

finish_compiling() {
    wait "$compiling" || true # a template that is no valid Python is no reason to stop
    compiling=
}

make_venv() {
    # The interpreter behind it, should it be that of .venv, which is about to be removed.
    local base
    base=$("$python" -c 'import sys; print(sys._base_executable)')
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
    stage "virtual environment of Python $version" "$base" -m venv "$venv"
}

install_everything() {
    touch "$running" "$unchecked"
    # No precompiled deepspeed kernels: what a run needs of them is built when it is first used. Its setup.py would
    # otherwise also stop on a machine that has a GPU but no CUDA compiler.
    export PIP_USER=0 DS_BUILD_OPS=0 DS_IGNORE_CUDA_DETECTION=1
    stage "build tools" install_group build
    stage "torchrec and fbgemm" install_group without_dependencies --no-deps
    stage "torch, ray and the other packages" install_group main
    tell_cuda_build
    start_compiling
    stage "deepspeed, from source" install_group source --no-build-isolation
    if [[ $mode != --packages ]]; then
        stage "rankmixer_dist itself, editable" pip_install --no-deps --no-build-isolation --editable "$root"
    fi
    stage "byte code, begun beside the last stage" finish_compiling
    printf '%s\n%s\n' "$machine" "$pins${mode/#--check/}" >"$stamp"
    rm "$running"
    echo "install: done in $SECONDS s"
}

# torch's wheel for Linux is its CUDA build unless pip's configuration leads to another one.
tell_cuda_build() {
    [[ $device == cpu ]] && is_cuda_build || return 0
    echo "install: torch is its CUDA build, and .venv 5.7 GB, most of which a machine without a GPU never loads. pip takes"
    echo "install: the CPU build where its configuration names PyTorch's index of CPU wheels too; see docs/machines.md"
}

is_cuda_build() {
    grep -qs "^cuda: .*= '" "$venv"/lib/python3.*/site-packages/torch/version.py
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
    mode=${1:-}
    case $mode in
        '' | --check | --packages) ;;
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
    choose_python
    machine="Python $version, $device, $root"
    pins=$(cat "$root/pyproject.toml" "$constraints" "$root/launch/install.sh" | sha256sum)
    if [[ -e $running ]]; then
        echo "install: the last install was interrupted; starting over"
        make_venv
        install_everything
    elif [[ ! -e $venv || (-f $stamp && $(head -n 1 "$stamp") != "$machine") ]]; then
        make_venv
        install_everything
    elif [[ ! -f $stamp || $(tail -n 1 "$stamp") != "$pins"?("$mode") ]]; then
        [[ -x $venv/bin/python ]] || fail ".venv exists but holds no working Python; remove it and run this again"
        install_everything # into what is there, which pip then brings up to date
    else
        echo "install: up to date ($device)"
    fi
    if [[ $mode != --packages && ($mode == --check || -e $unchecked) ]]; then
        check || fail "the lines marked bad above have to be mended; check again with: bash launch/install.sh --check"
    fi
}

main "$@"
