"""Options of DHEN."""

from typing import Literal

from pydantic import PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims


class DHENOptions(BackboneOptions):
    """DHEN."""

    num_layers: PositiveInt = 2
    interactions: tuple[Literal["dot", "cross", "attention", "linear"], ...] = ("dot", "cross", "attention", "linear")
    ensemble: Literal["concat", "sum"] = "concat"
    tokens_per_module: PositiveInt | None = None
    num_heads: PositiveInt = 1
    ffn_dim: PositiveInt | None = None
    rank: PositiveInt = 64
    dot_hidden_dims: HiddenDims = (512,)
    hidden_dims: HiddenDims = (512, 256)
