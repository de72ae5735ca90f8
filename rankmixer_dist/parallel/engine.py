"""Runs the dense model: forward, backward, gradient exchange, clipping and update, by DeepSpeed or plainly.

Gradient convention, for both and for the tables alike: a rank's loss is `world_size * (sum over its rows) / (weight of
the global batch)`; its mean over the ranks is then the loss of the global batch, DeepSpeed averages the dense gradients
over the ranks, TorchRec divides the table gradients by their number, and N ranks make the same step as one.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rankmixer_dist.parallel.deepspeed_setup import deepspeed
from rankmixer_dist.parallel.expert_groups import clipping_scale, optimizer_groups, owned_and_shared
from rankmixer_dist.pieces import Piece, Place, dense_key, dense_pieces, places_of


@dataclass(frozen=True)
class OptimizerSettings:
    """Dense optimizer. `adam` is AdamW (decoupled weight decay); clipping is by the global norm, None for none."""

    kind: Literal["adam", "adagrad", "rmsprop"]
    lr: float
    weight_decay: float = 0.0
    clip_norm: float | None = None


class DenseEngine(Protocol):
    """The seam between the training step and what moves the dense weights."""

    module: nn.Module

    def __call__(self, *args: Any) -> Any:
        """What the module returns: a tensor, or a tuple in which tensors are; DeepSpeed finds them there alone."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Back-propagates a rank's loss, through to the tables, and exchanges the dense gradients."""
        ...

    def step(self, lr: float) -> None:
        """Clips, updates at this learning rate and clears the gradients."""
        ...

    @property
    def updates(self) -> int:
        """Optimizer steps taken."""
        ...

    def moments(self) -> tuple[str, ...]:
        """Kinds of optimizer state that each parameter has, e.g. `exp_avg`; none before the first step."""
        ...

    def pieces(self) -> list[Piece]:
        """This rank's part of the fp32 weights and of the optimizer's moments, flat, whatever the ZeRO stage."""
        ...

    def make_room(self, moments: Sequence[str], updates: int) -> None:
        """Prepares a fresh engine for a state of that many steps: `pieces` then has its moments too, to be filled."""
        ...

    def refresh(self) -> None:
        """Takes up what was written into `pieces`; all ranks call it."""
        ...


_MOST_BUCKET_ELEMENTS = 1 << 25
"""128 MiB in fp32, which keeps any network busy."""


def bucket_elements(module: nn.Module) -> int:
    """Gradient elements that ZeRO gathers before it exchanges them; it holds a buffer of so many through each backward.

    Small models need one exchange, and no more memory than their gradients. DeepSpeed takes 5e8 for any model, 2 GB.
    """
    elements = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return max(1, min(elements, _MOST_BUCKET_ELEMENTS))


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The torch optimizer that `settings` names."""
    if settings.kind == "adam":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.kind == "adagrad":
        return torch.optim.Adagrad(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.RMSprop(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


class PlainEngine:
    """The null twin: one process, one torch optimizer, fp32."""

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        self.module = module
        self.optimizer = build_optimizer(module.parameters(), settings)
        self._clip_norm = settings.clip_norm

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip_norm)
        _set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def updates(self) -> int:
        return _updates(self.optimizer)

    def moments(self) -> tuple[str, ...]:
        return _moments(self.optimizer)

    def pieces(self) -> list[Piece]:
        return _whole_pieces(dict(self.module.named_parameters()), self.optimizer, places_of(self.module))

    def make_room(self, moments: Sequence[str], updates: int) -> None:
        _make_room(self.module.parameters(), self.optimizer, moments, updates)

    def refresh(self) -> None:
        pass


class DeepSpeedEngine:
    """DeepSpeed over all ranks of the default group, ZeRO 0, 1 or 2, fp32 or bf16.

    Parameters of the module may be owned, see `parallel.expert_groups`.

    A step never makes the host wait for a GPU: the norm is computed only to clip by it, which happens here, and no
    gradient is asked whether it is finite. One that is not leaves weights that are not, which the next loss shows and
    no checkpoint takes. In bf16 without ZeRO DeepSpeed's own optimizer asks every parameter, and leaves the step out.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerSettings,
        *,
        zero_stage: Literal[0, 1, 2],
        precision: Literal["fp32", "bf16"],
        rows_per_rank: int,
    ) -> None:
        self._places = places_of(module)
        self._clip_norm = settings.clip_norm
        self._clipping: Tensor | None = None
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": rows_per_rank,
            # The tables update in every backward, so accumulating only the dense gradients would train two models.
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": zero_stage, "reduce_bucket_size": bucket_elements(module)},
            "zero_allow_untested_optimizer": True,  # torch's own optimizers are elementwise, which is all it asks
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": precision == "bf16", "check_grad_overflow": False},
            "gradient_clipping": 0.0,
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},  # it synchronises the device twice a step
        }
        if zero_stage > 0:
            config["zero_optimization"]["compute_grad_norm"] = False
        if precision == "bf16":
            config["communication_data_type"] = "fp32"
        device = next(module.parameters()).device
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            # Else it takes the GPU that the local rank counts to, which a process that sees its own alone has not.
            args=SimpleNamespace(device_rank=device.index or 0),
            model=module,
            # In bf16 without ZeRO DeepSpeed takes a step on zero gradients here; at rate 0 it moves no weight, and
            # what it leaves in the optimizer is forgotten. Every later step sets its rate.
            optimizer=build_optimizer(optimizer_groups(module), dataclasses.replace(settings, lr=0.0)),
            config=config,
            dist_init_required=False,
        )
        self.module = module
        # Where the gradients of whatever is updated lie in fp32, at any stage and in either precision.
        self._base_optimizer.register_step_pre_hook(self._clip)
        self._is_partitioned = zero_stage > 0
        if not self._is_partitioned and self.optimizer is not self._base_optimizer:
            self._base_optimizer.state.clear()

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        if self._clip_norm is not None:
            self._clipping = clipping_scale(self._gradients(), self._clip_norm)
        _set_lr(self.optimizer, lr)
        self._engine.step()

    @property
    def updates(self) -> int:
        return _updates(self._base_optimizer)

    def moments(self) -> tuple[str, ...]:
        return _moments(self._base_optimizer)

    def pieces(self) -> list[Piece]:
        if not self._is_partitioned:
            return _whole_pieces(self._masters(), self._base_optimizer, self._places)
        self._link_moments()
        pieces = []
        for name, parameter in self.module.named_parameters():
            mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:  # lies on other ranks only
                continue
            place, start = self._places[name], mapping.lp_fragment_address.start
            own = {"weight": mapping.get_hp_fragment()}
            own |= {kind: mapping.get_hp_fragment(kind) for kind in self.moments()}
            pieces += [place.flat_piece(dense_key(name, kind), part.detach(), start) for kind, part in own.items()]
        return pieces

    def make_room(self, moments: Sequence[str], updates: int) -> None:
        if self._is_partitioned:
            partitions = [part for group in self._base_optimizer.param_groups for part in group["params"]]
            _make_room(partitions, self._base_optimizer, moments, updates)
            self.optimizer._hp_optimizer_states_linked = False
        else:
            _make_room(self._masters().values(), self._base_optimizer, moments, updates)

    @torch.no_grad()
    def refresh(self) -> None:
        """Forward reads the parameters themselves; under ZeRO or bf16 they are copies of the fp32 weights."""
        if self._is_partitioned:
            self.optimizer.update_lp_params()
            return
        masters = self._masters()
        for name, parameter in self.module.named_parameters():
            parameter.copy_(masters[name])

    def _link_moments(self) -> None:
        """Lets the parameters find their part of the moments, which DeepSpeed does in the first step after a start."""
        if self.updates:
            # DeepSpeed did so after the update of its first group of parameters, when the others had none.
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """DeepSpeed steps one group of parameters after the other, each as if it were all."""
        if self._clipping is None:
            return
        for group in optimizer.param_groups:
            if gradients := [p.grad for p in group["params"] if p.grad is not None]:
                torch._foreach_mul_(gradients, self._clipping)

    def _gradients(self) -> list[tuple[list[Tensor], int]]:
        """This rank's averaged gradients, and on how many ranks the same ones lie."""
        if self._is_partitioned:
            return [(list(partition), 1) for partition in self.optimizer.averaged_gradients.values()]
        kinds = owned_and_shared(self.module.parameters())
        return [([p.grad for p in parameters if p.grad is not None], ranks) for parameters, ranks in kinds]

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer inside whatever DeepSpeed wrapped around it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _masters(self) -> dict[str, Tensor]:
        """Under ZeRO 0: each parameter's fp32 master, which is itself unless the precision is bf16."""
        if self.optimizer is self._base_optimizer:
            return dict(self.module.named_parameters())
        groups = zip(self.optimizer.fp16_groups, self.optimizer.fp32_groups, strict=True)
        master = {id(p): m for low, high in groups for p, m in zip(low, high, strict=True)}
        return {name: master[id(parameter)] for name, parameter in self.module.named_parameters()}


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _updates(optimizer: torch.optim.Optimizer) -> int:
    state: dict[str, Any] = next(iter(optimizer.state.values()), {})
    return int(state.get("step", 0))


def _moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """All parameters, or flat partitions of them, have the same kinds of state."""
    return tuple(key for key in next(iter(optimizer.state.values()), {}) if key != "step")


def _whole_pieces(
    masters: dict[str, Tensor], optimizer: torch.optim.Optimizer, places: dict[str, Place]
) -> list[Piece]:
    pieces = dense_pieces(masters, places)
    for kind in _moments(optimizer):
        pieces += dense_pieces({name: optimizer.state[master][kind] for name, master in masters.items()}, places, kind)
    return pieces


def _make_room(
    parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer, moments: Sequence[str], updates: int
) -> None:
    for parameter in parameters:
        optimizer.state[parameter] = {kind: torch.zeros_like(parameter) for kind in moments}
        optimizer.state[parameter]["step"] = torch.tensor(float(updates))
