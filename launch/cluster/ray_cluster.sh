#!/usr/bin/env bash
# Prepares data on several hosts with Ray. On each host, in this order:
#
#   bash launch/cluster/ray_cluster.sh head                       # on the first
#   bash launch/cluster/ray_cluster.sh worker host0               # on every other one
#   bash launch/cluster/ray_cluster.sh prepare host0 configs/<run>.yaml [section.key=value ...]
#   bash launch/cluster/ray_cluster.sh stop                       # on every host, at the end: stops all Ray there
#
# preprocess.py joins the cluster that RAY_ADDRESS names; without it, it starts one on its own machine for the time of
# the job. Every host needs this folder with its .venv; raw logs and data.prepared must lie on a file system that all
# mount under the same path. Whoever reaches a Ray port without a token check can run code, so the check is on: copy the
# head's ~/.ray/auth_token to the same place on the other hosts, or name a shared one with RAY_AUTH_TOKEN_PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

port=${PORT:-6379}
export RAY_AUTH_MODE=token

case ${1:-} in
    head)
        .venv/bin/ray get-auth-token --generate >/dev/null # keeps the one that is there
        .venv/bin/ray start --head --port "$port" --include-dashboard false
        ;;
    worker) .venv/bin/ray start --address "${2:?name the host of the head}:$port" ;;
    prepare)
        : "${3:?usage: ray_cluster.sh prepare HEAD configs/<run>.yaml}"
        RAY_ADDRESS="$2:$port" exec .venv/bin/python launch/preprocess.py "${@:3}"
        ;;
    stop) .venv/bin/ray stop ;;
    *)
        sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
