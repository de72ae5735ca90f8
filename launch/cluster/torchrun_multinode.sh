#!/usr/bin/env bash
# Trains on several hosts with torchrun. Run the same line on every host, at about the same time:
#
#   HEAD=host0 NODES=4 bash launch/cluster/torchrun_multinode.sh configs/<run>.yaml [section.key=value ...]
#
# Every host needs this folder with its .venv, and the data and run folders, under the same path (a shared file system).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

: "${HEAD:?name the host where the ranks meet, as every host can resolve it}"
: "${NODES:?the number of hosts}"
RANKS_PER_NODE=${RANKS_PER_NODE:-8} # one for each GPU
PORT=${PORT:-29500}                 # free on HEAD and reachable from the others
JOB_ID=${JOB_ID:-rankmixer}         # different for jobs that meet at the same HEAD and PORT

# Where a host has several networks, name the one that reaches the others (see `ip -br address`):
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS_PER_NODE ? cores / RANKS_PER_NODE : 1))}

# When a rank dies all are started again, at most three times, and go on from the newest checkpoint; told to stop
# (SIGTERM), they have 240 s to finish their step and save.
exec .venv/bin/python -m torch.distributed.run \
    --nnodes "$NODES" --nproc_per_node "$RANKS_PER_NODE" --max_restarts 3 \
    --shutdown_timeout 240 \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id "$JOB_ID" \
    launch/train.py "$@"
