"""Size and arithmetic of the dense model by part, counted on the meta device by torch's own FLOP counter."""

import copy
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankmixer_dist.cost import DenseCost, Part
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.models.ranker import Ranker


def count(model: Ranker, events_per_row: Mapping[str, float] | None = None) -> DenseCost:
    """Parameters, and FLOPs a row, of the poolings, the tokenizer, the backbone, the heads and the auxiliary heads.

    Each part is counted alone, on inputs that all need gradients. Nothing is computed, whatever device `model` lies on:
    neither its weights nor a random generator change. All values of `model` have to be whole, so that
    a backbone that is to be spread over ranks is counted before.

    Args:
        events_per_row: by sequence; the mean, rounded, is what is counted, and the longest of what is not named.

    Raises:
        UserError: a part cannot run without values.
    """
    parts = []
    for spec, pooling in zip(model.features.sequences, model.poolings, strict=True):
        query = None if spec.query is None else _leaf(spec.dim)
        events = round((events_per_row or {}).get(spec.name, spec.max_length))
        keys_ND = torch.empty(events, spec.dim, device="meta", requires_grad=True)
        offsets = torch.empty(2, dtype=torch.int32, device="meta")
        parts.append(count_part(f"pooling.{spec.name}", pooling, query, keys_ND, offsets))
    groups = [[_leaf(dim)] for dim in model.features.group_dims()]
    parts.append(count_part("tokenizer", model.tokenizer, groups))
    tokens_BTD = _leaf(model.tokenizer.num_tokens, model.tokenizer.token_dim)
    parts.append(count_part("backbone", model.backbone, tokens_BTD))
    parts.append(count_part("heads", model.heads, _leaf(model.backbone.out_dim)))
    if len(model.auxiliary_heads):
        heads = [count_part("auxiliary head", head, _leaf(model.backbone.out_dim)) for head in model.auxiliary_heads]
        # Scoring does without them.
        parameters, trained = sum(p.parameters for p in heads), sum(p.flops_per_row_train for p in heads)
        parts.append(Part("auxiliary heads", parameters, 0, trained))
    return DenseCost(tuple(parts))


def count_part(name: str, module: nn.Module, *inputs: Any) -> Part:
    """Parameters of `module`, and the FLOPs of a scoring pass and of a training pass of one row.

    Args:
        inputs: of one row, all tensors on the meta device, in fp32, with gradients where training needs them.

    Raises:
        UserError: the module cannot run without values.
    """
    module = _weightless(module)
    with torch.random.fork_rng(devices=[]), _values_missed(name):
        with FlopCounterMode(display=False) as scoring:
            module.eval()(*inputs)
        with FlopCounterMode(display=False) as training:
            made = module.train()(*inputs)
            out: Tensor = made[0] if isinstance(made, tuple) else made  # without what a part reports beside
            out.sum().backward()
    return Part(
        name,
        sum(parameter.numel() for parameter in module.parameters()),
        scoring.get_total_flops() - _closed_experts(module, trains=False),
        training.get_total_flops() - 3 * _closed_experts(module, trains=True),
    )


@contextmanager
def _values_missed(name: str) -> Iterator[None]:
    """Raises what torch says of values that are not there, or of a tensor made on another device, as a `UserError`."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = [frame for frame in frames if "torch" not in Path(frame.filename).parts][-1]
        raise UserError(
            f"{name}: its FLOPs cannot be counted: {Path(place.filename).name}, line {place.lineno}, does not run on "
            f"the meta device, where tensors have shapes but no values ({one_line(error)}); make it read no value, and "
            "new tensors on its input's device"
        ) from error


def _leaf(*shape: int) -> Tensor:
    return torch.empty(1, *shape, device="meta", requires_grad=True)


def _weightless(module: nn.Module) -> nn.Module:
    """A copy of `module` on the meta device in fp32, for which no weight is copied."""
    there: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in module.buffers()}
    there |= {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, there).float()


def _closed_experts(module: nn.Module, *, trains: bool) -> int:
    """Forward FLOPs a row of experts with closed gates, which are counted where gates have no values, but not computed.

    The one term in closed form: 2 (1 - r) for each of an expert's 2 T E D F weights, at an active ratio r.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, PerTokenMoE)]
    sparse = [layer for layer in layers if layer.sparse_training or not trains]
    flops = [2 * (layer.experts.up.weight.numel() + layer.experts.down.weight.numel()) for layer in sparse]
    return sum(all_open - round(layer.active_ratio * all_open) for layer, all_open in zip(sparse, flops, strict=True))
