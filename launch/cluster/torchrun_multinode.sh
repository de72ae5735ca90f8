#!/usr/bin/env bash
# Trains on several hosts. Run the same line on every host, at about the same time:
#
#   HEAD=host0 NODES=4 bash launch/cluster/torchrun_multinode.sh configs/<run>.yaml [section.key=value ...]
#
# Shared by all hosts, under the same path: the folders `runs` and `data.prepared` of the config. The same on each: this
# folder with its .venv, the config and the command line; hosts that differ are refused. Try the hosts first:
#
#   HEAD=host0 NODES=4 VERB=launch/doctor.py bash launch/cluster/torchrun_multinode.sh configs/<run>.yaml
#
# NODES=2:4 goes on with what is left when a host is lost, down to 2, and takes a host in again that comes back; with
# NODES=4 the others wait for it.
#
# Ports: the launchers meet at HEAD:PORT; rank 0 listens on a port of its own that changes with each start, and every
# rank on some for gloo or NCCL, all in net.ipv4.ip_local_port_range. They ask nobody who he is, and who reaches them can
# run code in the ranks: let none but these hosts reach each other there (a private network, a security group, or on
# each host: nft add rule inet filter input tcp dport { 29500, 32768-60999 } ip saddr != 10.0.0.0/24 drop).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

: "${HEAD:?name the host where the ranks meet, as every host can resolve it}"
: "${NODES:?the number of hosts, or the fewest and the most as 2:4}"
RANKS_PER_NODE=${RANKS_PER_NODE:-8} # one for each GPU
PORT=${PORT:-29500}                 # free on HEAD and reachable from the others
JOB_ID=${JOB_ID:-rankmixer}         # different for jobs that meet at the same HEAD and PORT
VERB=${VERB:-launch/train.py}

# Where a host has several networks, name the one that reaches the others (see `ip -br address`):
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

# When a rank dies all are started again, at most three times, and go on from the newest checkpoint; told to stop
# (SIGTERM, SIGUSR1), they have 240 s to finish their step and save.
exec "${PYTHON:-.venv/bin/python}" launch/torchrun.py \
    --nnodes "$NODES" --nproc_per_node "$RANKS_PER_NODE" --max_restarts 3 \
    --shutdown_timeout 240 \
    --rdzv_endpoint "$HEAD:$PORT" --rdzv_id "$JOB_ID" \
    "$VERB" "$@"
