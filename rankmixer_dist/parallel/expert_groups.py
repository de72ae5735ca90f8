"""What DeepSpeed has to know of parameters that only some ranks hold, and the norm that it would get wrong.

A model that holds an `ExpertGrid` has parameters of two kinds: shared ones, the same on all ranks, and owned ones, of
which each rank of an expert group has its own. For DeepSpeed the owned ones are experts, and all that follows from that
stands here: it keeps their groups by name, it finds out that there are any by an instance of its own MoE layer in the
module, and it reads `allreduce` and `group_name` off each parameter and `moe` off each group of the optimizer's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankmixer_dist.parallel.deepspeed_setup import deepspeed
from rankmixer_dist.parallel.exchange import GroupTransport, LocalTransport, Transport
from rankmixer_dist.parallel.topology import sum_over_ranks
from rankmixer_dist.pieces import Place, place_of, set_place


@dataclass(frozen=True)
class ExpertGrid:
    """The ranks as a grid of `data_size` rows of `size`: a row, of neighbouring ranks, shares out one set of experts.

    position: which share this rank of its row owns; all ranks of a column own the same.
    group: this rank's row; None if it is alone in it.
    """

    size: int
    position: int
    data_size: int
    group: dist.ProcessGroup | None = None

    @property
    def name(self) -> str:
        """What DeepSpeed calls the groups of this grid."""
        return f"ep_size_{self.size}"

    def transport(self) -> Transport:
        """What moves tokens within a row."""
        return LocalTransport() if self.group is None else GroupTransport(self.group)

    def own(self, count: int) -> slice:
        """This rank's share of `count` entries, which is a multiple of `size`."""
        share = count // self.size
        return slice(self.position * share, (self.position + 1) * share)


def check_whole_rows(size: int, ranks: int) -> None:
    """Makes sure that so many ranks make up rows of `size`.

    Raises:
        ValueError: they do not.
    """
    if size < 1 or ranks % size:
        usable = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise ValueError(f"expert size {size} does not divide the {ranks} ranks; use one of {usable}")


def expert_grid(size: int) -> ExpertGrid:
    """The grid with rows of `size` ranks; all ranks call it.

    Raises:
        ValueError: the ranks do not make up whole rows.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    check_whole_rows(size, world_size)
    if size == 1:
        return ExpertGrid(size=1, position=0, data_size=world_size)
    deepspeed.comm.init_distributed(dist_init_required=False)
    groups = deepspeed.utils.groups
    groups._create_expert_and_data_parallel(size)  # which makes them once
    group = groups._get_expert_parallel_group(f"ep_size_{size}")
    return ExpertGrid(size=size, position=rank % size, data_size=world_size // size, group=group)


class ExpertsBelow(deepspeed.moe.layer.MoE):
    """Tells DeepSpeed that the module which holds this has owned parameters; it has no part in the computation.

    Marked parameters alone do not tell it: without an MoE layer of its own, ZeRO shares out owned parameters over all
    ranks, as if they were one parameter. So this is one, without what such a layer consists of.
    """

    def __init__(self, grid: ExpertGrid) -> None:
        nn.Module.__init__(self)
        self.ep_size, self.expert_group_name = grid.size, grid.name
        self.num_experts, self.num_local_experts = grid.size, 1

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """There is nothing left to do: `expert_grid` has made the groups."""


def keep_own_share(module: nn.Module, grid: ExpertGrid) -> None:
    """Cuts every parameter of `module` down to this rank's share of its first dimension, in place.

    Raises:
        ValueError: a parameter that cannot be shared out evenly.
    """
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        if not shape or shape[0] % grid.size:
            raise ValueError(f"{name} of shape {shape} cannot be shared out over {grid.size} ranks")
        own = grid.own(shape[0])
        parameter.data = parameter.data[own].clone()
        set_place(parameter, Place(shape, own.start))
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = grid.name  # type: ignore[attr-defined]


def is_owned(parameter: Tensor) -> bool:
    """Whether other ranks hold other parts of `parameter`."""
    return tuple(parameter.shape) != place_of(parameter).shape


def optimizer_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The module's parameters in the groups that DeepSpeed asks for; one group if all are shared."""
    group = {"params": list(module.parameters()), "name": "shared"}
    return deepspeed.moe.utils.split_params_into_different_moe_groups_for_optimizer(group)


def owned_and_shared(parameters: Iterable[nn.Parameter]) -> list[tuple[list[nn.Parameter], int]]:
    """The parameters of either kind, and how many ranks hold the same ones."""
    owned: list[nn.Parameter] = []
    shared: list[nn.Parameter] = []
    for parameter in parameters:
        (owned if is_owned(parameter) else shared).append(parameter)
    columns = {parameter.group_name for parameter in owned}  # type: ignore[attr-defined]
    assert len(columns) <= 1, "a model has one grid"
    groups = [deepspeed.utils.groups._get_expert_data_parallel_group(name) for name in columns]
    return [*((owned, dist.get_world_size(group)) for group in groups), (shared, dist.get_world_size())]


@torch.no_grad()
def clipping_scale(gradients: Iterable[tuple[Sequence[Tensor], int]], max_norm: float) -> Tensor:
    """Scalar by which gradients are to be multiplied so that the whole model's norm is at most `max_norm`.

    It is what one rank would find. DeepSpeed adds up each rank's own experts and then averages over the ranks, so that
    its norm, without ZeRO, is neither the model's nor independent of the expert size; and it reads the norm on the
    host. A norm that is not finite scales nothing.

    Args:
        gradients: this rank's, averaged, and on how many ranks the same ones lie.
    """
    squares = [
        (torch.stack(torch._foreach_norm(list(tensors), 2, torch.float32)).double() ** 2).sum() / copies
        for tensors, copies in gradients
        if tensors
    ]
    norm = sum_over_ranks(torch.stack(squares).sum()).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return torch.where(norm.isfinite(), scale, torch.ones_like(scale)).float()
