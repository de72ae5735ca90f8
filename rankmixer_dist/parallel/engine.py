"""Runs the dense model: forward, backward, gradient exchange, clipping and update, by DeepSpeed or plainly.

Gradient convention, for both and for the tables alike: a rank's loss is `world_size * (sum over its rows) / (weight of
the global batch)`; its mean over the ranks is then the loss of the global batch, DeepSpeed averages the dense gradients
over the ranks, TorchRec divides the table gradients by their number, and N ranks make the same step as one.
"""

import dataclasses
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# On CPU DeepSpeed would compile a C++ extension at the first start, for an inference all-reduce that nobody calls here.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True)
class OptimizerSettings:
    """Dense optimizer. `adam` is AdamW (decoupled weight decay); clipping is by the global norm, None for none."""

    kind: Literal["adam", "adagrad", "rmsprop"]
    lr: float
    weight_decay: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True)
class DenseState:
    """The dense model between two steps, by parameter name and in full shape, fp32 on the CPU.

    `moments`: optimizer state tensors of each parameter, e.g. `exp_avg`; `updates`: optimizer steps taken.
    """

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    updates: int


class DenseEngine(Protocol):
    """The seam between the training step and what moves the dense weights."""

    module: nn.Module

    def __call__(self, *args: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None:
        """Back-propagates a rank's loss, through to the tables, and exchanges the dense gradients."""
        ...

    def step(self, lr: float) -> None:
        """Clips, updates at this learning rate and clears the gradients."""
        ...

    def state(self) -> DenseState:
        """Whole weights and optimizer moments, whatever the ZeRO stage; every rank must call it."""
        ...

    def load_state(self, state: DenseState) -> None:
        """Takes up `state`, which may come from another world size, ZeRO stage or precision."""
        ...


def build_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
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

    def __call__(self, *args: Any) -> Tensor:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> None:
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip_norm)
        _set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> DenseState:
        return _whole_state(dict(self.module.named_parameters()), self.optimizer)

    def load_state(self, state: DenseState) -> None:
        _load_whole_state(dict(self.module.named_parameters()), self.optimizer, state)


class DeepSpeedEngine:
    """DeepSpeed over all ranks of the default group, ZeRO 0, 1 or 2, fp32 or bf16."""

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerSettings,
        *,
        zero_stage: Literal[0, 1, 2],
        precision: Literal["fp32", "bf16"],
        rows_per_rank: int,
    ) -> None:
        config = {
            "train_micro_batch_size_per_gpu": rows_per_rank,
            # The tables update in every backward, so accumulating only the dense gradients would train two models.
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,  # torch's own optimizers are elementwise, which is all it asks
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": precision == "bf16"},
            "gradient_clipping": settings.clip_norm or 0.0,
            "steps_per_print": 2**31,
        }
        if precision == "bf16":
            config["communication_data_type"] = "fp32"
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            # In bf16 without ZeRO DeepSpeed takes a step on zero gradients here; at rate 0 it moves no weight, and
            # what it leaves in the optimizer is forgotten. Every later step sets its rate.
            optimizer=build_optimizer(module.parameters(), dataclasses.replace(settings, lr=0.0)),
            config=config,
            dist_init_required=False,
        )
        self.module = module
        self._is_partitioned = zero_stage > 0
        if not self._is_partitioned and self.optimizer is not self._base_optimizer:
            self._base_optimizer.state.clear()

    def __call__(self, *args: Any) -> Tensor:
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        _set_lr(self.optimizer, lr)
        self._engine.step()

    def state(self) -> DenseState:
        if not self._is_partitioned:
            return _whole_state(self._masters(), self._base_optimizer)
        keys = [key for key in self._partition_state() if key != "step"]
        return DenseState(
            weights={n: _cpu_fp32(safe_get_full_fp32_param(p)) for n, p in self.module.named_parameters()},
            moments={
                n: {key: _cpu_fp32(safe_get_full_optimizer_state(p, key)) for key in keys}
                for n, p in self.module.named_parameters()
            },
            updates=int(self._partition_state().get("step", 0)),
        )

    def load_state(self, state: DenseState) -> None:
        if not self._is_partitioned:
            _load_whole_state(self._masters(), self._base_optimizer, state)
            self._refresh(state)
            return
        self._create_moments(state)
        for name, parameter in self.module.named_parameters():
            safe_set_full_fp32_param(parameter, state.weights[name].to(parameter.device))
            for key, value in state.moments[name].items():
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
        self._refresh(state)

    @torch.no_grad()
    def _refresh(self, state: DenseState) -> None:
        """Sets the weights that forward reads; under bf16 they are the rounded copy of the fp32 ones."""
        for name, parameter in self.module.named_parameters():
            parameter.copy_(state.weights[name])

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

    def _create_moments(self, state: DenseState) -> None:
        """Gives the flat partitions the moments that a first update would, and lets the parameters find them.

        DeepSpeed links the parameters to their optimizer state once, after the first step, and a fresh engine has
        not made one.
        """
        base = self._base_optimizer
        keys = next(iter(state.moments.values()), {})
        for group in base.param_groups:
            for partition in group["params"]:
                base.state[partition] = {key: torch.zeros_like(partition) for key in keys}
                base.state[partition]["step"] = torch.tensor(float(state.updates))
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()

    def _partition_state(self) -> dict[str, Any]:
        """Optimizer state of the first flat partition, empty before the first update; all hold the same keys."""
        return next(iter(self._base_optimizer.state.values()), {})


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _cpu_fp32(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)


def _whole_state(masters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> DenseState:
    weights, moments, updates = {}, {}, 0
    for name, master in masters.items():
        state = optimizer.state[master]
        weights[name] = _cpu_fp32(master)
        moments[name] = {key: _cpu_fp32(value) for key, value in state.items() if key != "step"}
        updates = int(state["step"]) if state else 0
    return DenseState(weights=weights, moments=moments, updates=updates)


@torch.no_grad()
def _load_whole_state(masters: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: DenseState) -> None:
    for name, master in masters.items():
        master.copy_(state.weights[name])
        optimizer.state[master] = {
            "step": torch.tensor(float(state.updates)),
            **{key: value.to(master.device, copy=True) for key, value in state.moments[name].items()},
        }
