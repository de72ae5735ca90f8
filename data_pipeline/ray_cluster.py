"""The Ray that this process works with."""

import os
from typing import Any

from rankmixer_dist.errors import UserError

_OBJECT_STORE_BYTES = 2 << 30  # a cap, not a reservation; what does not fit is spilled to disk


def join_ray() -> Any:
    """The `ray` module, joined to the running Ray of this process, else the cluster at RAY_ADDRESS, else one that is
    started on this machine.

    Raises:
        UserError: RAY_ADDRESS names no running cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        address = os.environ.get("RAY_ADDRESS")
        if address:
            try:
                ray.init(**quiet)
            except ConnectionError as error:
                raise UserError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({error})") from error
        else:
            # "local": without it Ray joins whatever cluster was last started on this machine.
            ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
    return ray
