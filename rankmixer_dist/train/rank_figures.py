"""Which rank, and which host, holds the others up: figures of all ranks in a log line."""

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from rankmixer_dist.parallel.topology import Topology, all_gather_values

FIGURES = ("own_s", "data_wait_s", "mem_gb")
"""A rank's own part of a step, its wait for data (seconds a step) and its peak memory (GiB). All ranks' steps last as
long as the slowest rank's, since they exchange; which one that is shows in what each does without the others."""
_NAMES = {"own_s": "computes", "data_wait_s": "waits for data"}
_SHARE_OF_STEP = 0.25
_TIMES_MEMORY = 1.5


def rank_figures(line: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """Median, maximum and the rank and host of the maximum, of each of `FIGURES`; nothing of one rank.

    All ranks call it with their own line, in which a figure may be None on all of them.
    """
    known = [name for name in FIGURES if line[name] is not None]
    if topology.world_size == 1 or not known:
        return {}
    values_RF = all_gather_values(torch.tensor([line[name] for name in known], dtype=torch.float64)).tolist()
    return {
        name: _spread(values_R, topology) for name, values_R in zip(known, zip(*values_RF, strict=True), strict=True)
    }


def _spread(values_R: tuple[float, ...], topology: Topology) -> dict[str, Any]:
    rank = max(range(len(values_R)), key=values_R.__getitem__)
    host = topology.hosts[rank]
    return {"median": statistics.median_low(values_R), "max": values_R[rank], "rank": rank, "host": host}


def stands_out(ranks: Mapping[str, Mapping[str, Any]], step_s: float) -> str:
    """In words, the rank that costs the others more than a quarter of their step, or takes half as much memory again as
    the median rank; empty where none does."""
    slow = {name: ranks[name] for name in _NAMES if name in ranks and _excess(ranks[name]) > _SHARE_OF_STEP * step_s}
    if slow:
        name = max(slow, key=lambda one: _excess(slow[one]))
        found = slow[name]
        largest_ms, usual_ms = 1000 * found["max"], 1000 * found["median"]
        return f"{_who(found)} {_NAMES[name]} {largest_ms:.0f} ms a step, the median rank {usual_ms:.0f} ms"
    memory = ranks.get("mem_gb")
    if memory is not None and memory["max"] > _TIMES_MEMORY * memory["median"]:
        return f"{_who(memory)} takes {memory['max']:.1f} GiB, the median rank {memory['median']:.1f} GiB"
    return ""


def _excess(figure: Mapping[str, Any]) -> float:
    return figure["max"] - figure["median"]


def _who(figure: Mapping[str, Any]) -> str:
    return f"rank {figure['rank']} on {figure['host']}"
