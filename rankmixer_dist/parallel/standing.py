"""Where a process stands among the ranks, and which GPU is its own: from its launcher's environment alone."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rankmixer_dist.errors import UserError

_FIRST_STEP_OF_SLURM = 0xFFFF0000
"""Steps of SLURM's own, such as the batch script and the interactive shell, have the highest numbers of 32 bits."""
_OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
_OF_A_RANK = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "CROSS_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "LOCAL_SIZE", "CROSS_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)
_FROM_ALL_GPUS = "let each rank see its own GPU only (srun --gpus-per-task=1)"


@dataclass(frozen=True)
class Standing:
    """A rank as its launcher and its host show it.

    local_world_size: ranks of its host; None where the launcher does not say.
    device: index of its GPU among those that the process sees; None on the CPU.
    gpu: what tells this GPU from all others, wherever it is seen.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    device: int | None
    host: str = ""
    gpu: str | None = None


def names_of_ranks(env: Mapping[str, str]) -> list[str]:
    """Variables in `env` by which launchers tell a process which rank of a job it is."""
    return [name for name in env if name in _OF_A_RANK or name.startswith(("TORCHELASTIC_", "OMPI_COMM_WORLD_"))]


def ranks_of_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """RANK and its kin where the launcher has names of its own for them; empty where there is nothing to add.

    Raises:
        UserError: as `ranks_of_srun` does.
    """
    if "RANK" in env:  # torchrun's, deepspeed's, those of Kubernetes operators
        return {}
    if _OPEN_MPI["RANK"] in env:  # before srun's, with which mpirun may start its own helpers
        if env.get(_OPEN_MPI["WORLD_SIZE"], "1") == "1":
            return {}
        return {name: env[theirs] for name, theirs in _OPEN_MPI.items() if theirs in env}
    return ranks_of_srun(env)


def ranks_of_srun(env: Mapping[str, str]) -> dict[str, str]:
    """RANK and its kin for a task of several that srun has started; empty for a process that stands alone.

    In the shell of an allocation, and in the script of a batch job, SLURM_PROCID is 0 and SLURM_NTASKS the number of
    tasks that an srun would start: nobody has started them. Only a step of srun has a number below SLURM's own.

    Raises:
        UserError: srun gave a terminal several tasks; only the first of them has a shell. Or it does not say how many
            of its tasks this node has.
    """
    step, tasks = env.get("SLURM_STEP_ID", ""), env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
    if not step.isdigit() or int(step) >= _FIRST_STEP_OF_SLURM or "SLURM_PROCID" not in env:
        planned = env.get("SLURM_NTASKS", "1")
        if planned.isdigit() and int(planned) > 1:
            told = f"SLURM planned {planned} tasks, but srun did not start this process: it works alone"
            print(f"note: {told}; start it with srun to use them all", file=sys.stderr, flush=True)
        return {}
    if tasks == "1":
        return {}
    if "SLURM_PTY_PORT" in env:
        raise UserError(
            f"srun --pty counts {tasks} tasks, of which one has this terminal; start it with srun without --pty, or "
            "open the terminal with srun --ntasks 1 --pty"
        )
    ranks = {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": tasks, "LOCAL_RANK": env.get("SLURM_LOCALID", "0")}
    return ranks | {"LOCAL_WORLD_SIZE": env.get("LOCAL_WORLD_SIZE") or _tasks_of_node(env, tasks)}


def _tasks_of_node(env: Mapping[str, str], tasks: str) -> str:
    """Tasks of a step of srun on this node."""
    node = env.get("SLURM_NODEID", "")
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):  # the latter may be the job's, of another step
        of_nodes = _expanded(env.get(name, ""))
        if str(sum(of_nodes)) == tasks and node.isdecimal() and int(node) < len(of_nodes):
            return str(of_nodes[int(node)])
    if "SLURM_NTASKS_PER_NODE" in env:
        return env["SLURM_NTASKS_PER_NODE"]
    if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES")) == "1":
        return tasks
    raise UserError(f"srun does not say how many of its {tasks} tasks this node has; give it --ntasks-per-node")


def _expanded(text: str) -> list[int]:
    """`4,3(x2)`, tasks of nodes as SLURM writes them, as 4, 3, 3; empty where the text is something else."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            return []
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def standing(env: Mapping[str, str], devices: int) -> Standing:
    """What `env`, with `ranks_of_launcher`, says of a process that sees that many GPUs.

    A process that sees one GPU has it for itself, whatever its local rank. One that sees several takes the one that
    its local rank counts to.

    Raises:
        UserError: the environment speaks of ranks that cannot be, of more ranks than GPUs, or of another device.
    """
    world_size, rank = _number(env, "WORLD_SIZE", least=1, otherwise=1), _number(env, "RANK")
    local_rank, local_world_size = _number(env, "LOCAL_RANK"), None
    for key in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        if key in env:
            local_world_size = _number(env, key, least=1)
            if local_world_size > world_size:
                raise UserError(f"{key} is {local_world_size}, but WORLD_SIZE is {world_size}; launchers set both")
    if rank >= world_size:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {world_size}: ranks count from 0; launchers set both")
    if local_rank >= (local_world_size or world_size):
        raise UserError(
            f"LOCAL_RANK is {local_rank}, but the host has {local_world_size or world_size} ranks: they count from 0; "
            "launchers set LOCAL_RANK and LOCAL_WORLD_SIZE"
        )
    require_accelerator(env, devices)
    if devices > 1 and max(local_rank + 1, local_world_size or 1) > devices:
        many = f"{local_world_size} ranks" if local_world_size else f"a rank with LOCAL_RANK {local_rank}"
        raise UserError(
            f"this host has {many}, but they see {devices} GPUs; start at most {devices} ranks a host, or "
            f"{_FROM_ALL_GPUS}"
        )
    device = None if devices == 0 else 0 if devices == 1 else local_rank
    return Standing(rank, world_size, local_rank, local_world_size, device)


def require_accelerator(env: Mapping[str, str], devices: int) -> None:
    """Makes sure that DeepSpeed, which DS_ACCELERATOR tells its device, works on that of torch and TorchRec.

    Raises:
        UserError: it would not.
    """
    found = "cuda" if devices else "cpu"
    wanted = env.get("DS_ACCELERATOR", found)
    if wanted == found:
        return
    if wanted == "cpu":
        raise UserError(
            f"DS_ACCELERATOR is cpu, which DeepSpeed alone obeys, and torch sees {devices} GPU{'s' * (devices > 1)}; "
            "hide them from all with CUDA_VISIBLE_DEVICES= (nothing after it), or unset DS_ACCELERATOR to use them"
        )
    raise UserError(f"DS_ACCELERATOR is {wanted}, but torch sees {found} here; unset it")


def _number(env: Mapping[str, str], key: str, *, least: int = 0, otherwise: int = 0) -> int:
    """A variable of the launchers, `otherwise` where it is not set.

    Raises:
        UserError: it is no number, or below `least`.
    """
    text = env.get(key, str(otherwise))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{key} is {text!r}, not a number from {least} on; launchers set it, else unset it")
    return int(text)


def settled(ranks: Sequence[Standing]) -> list[Standing]:
    """The ranks of a job, in their order; where a launcher did not say how many a host has, they are counted."""
    counted = Counter(one.host for one in ranks)
    return [replace(one, local_world_size=one.local_world_size or counted[one.host]) for one in ranks]


def require_together(ranks: Sequence[Standing]) -> None:
    """Makes sure that the devices of all ranks of a job, settled, go together.

    Hosts may have differing numbers of ranks, numbered in any order: each rank tells the others its device.

    Raises:
        UserError: some ranks have a GPU and others none, two have the same, or they are no whole hosts.
    """
    without = next((one for one in ranks if one.device is None), None)
    with_gpu = next((one for one in ranks if one.device is not None), None)
    if without and with_gpu:
        raise UserError(
            f"rank {without.rank} on {without.host} has no GPU that torch can use, but rank {with_gpu.rank} on "
            f"{with_gpu.host} has one; see launch/doctor.py on {without.host}, or hide the GPUs of all with "
            "CUDA_VISIBLE_DEVICES= (nothing after it)"
        )
    owners: dict[str, Standing] = {}
    for one in ranks:
        other = owners.setdefault(one.gpu, one) if one.gpu else one
        if other is not one:
            raise UserError(
                f"ranks {other.rank} and {one.rank} on {one.host} have the same GPU ({one.gpu}), and NCCL takes one "
                f"rank a GPU; start at most as many ranks as the host has GPUs, or {_FROM_ALL_GPUS}"
            )
    for size, count in Counter(one.local_world_size for one in ranks).items():
        if size is not None and count % size:
            raise UserError(
                f"LOCAL_WORLD_SIZE is {size} for {count} of {len(ranks)} ranks, which are no whole hosts; launchers "
                "set it to the number of ranks of each host"
            )
