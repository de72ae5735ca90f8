"""Options of HHFT, heterogeneous attention blocks and then Hiformer's."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions


class HHFTOptions(BackboneOptions):
    """Heterogeneous attention blocks, then Hiformer's."""

    num_hetero_blocks: PositiveInt = 2
    num_hiformer_blocks: PositiveInt = 1
    num_heads: PositiveInt = 4
    head_dim: PositiveInt | None = None
    rank: PositiveInt | None = None
    hidden_ratio: PositiveFloat = 4
    norm: Literal["post", "pre"] = "post"
