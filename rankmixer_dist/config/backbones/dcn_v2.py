"""Options of DCN-V2."""

from typing import Literal

from pydantic import PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims


class DCNv2Options(BackboneOptions):
    """DCN-V2."""

    num_layers: PositiveInt = 3
    rank: PositiveInt | None = None
    num_experts: PositiveInt = 1
    hidden_dims: HiddenDims = (512, 256)
    structure: Literal["parallel", "stacked"] = "parallel"
