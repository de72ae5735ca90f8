"""A run on GPUs that repeats itself to the last bit, where torch, FBGEMM, cuBLAS and NCCL have a switch for it."""

import os

import torch

from rankmixer_dist.errors import UserError

_VARIABLES = {
    # A cuBLAS product may add up in one way or another with the memory that happens to be free, unless it has its own.
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    # Around a ring the order of a sum over ranks follows from the wiring; switches that add up may do so as it comes.
    "NCCL_ALGO": ("Ring",),
}
"""Variable -> its values that keep an order, the first of which is set where there is none."""


def take_deterministic_ways() -> None:
    """Makes torch, FBGEMM, cuBLAS and NCCL take those of their ways that keep an order; before CUDA starts.

    FBGEMM asks torch for its switch, and then lets one thread block add up all gradients of a row. An operator that
    has no such way ends the run with torch's error, which names it. On a CPU the results stay as they are.

    Raises:
        UserError: the environment asks for another way.
    """
    for name, values in _VARIABLES.items():
        value = os.environ.setdefault(name, values[0])
        if value not in values:
            raise UserError(
                f"{name} is {value!r}, which train.deterministic cannot use; make it {' or '.join(values)}, or unset it"
            )
    torch.use_deterministic_algorithms(True)
    # It would fill whatever is allocated, which costs time and moves no figure: nothing is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def told_of_switch(device: torch.device) -> str:
    """What the switch does for a run on `device`, in a line."""
    if device.type == "cpu":
        return "train.deterministic: moves no bit on a CPU, where sums have one order without it"
    return (
        "train.deterministic: torch, FBGEMM, cuBLAS and NCCL keep the order of their sums; the same run on as many "
        "GPUs of the same kind and wiring repeats its figures to the last bit"
    )
