"""Options of heterogeneous attention."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions


class HeteroAttentionOptions(BackboneOptions):
    """Heterogeneous attention."""

    num_blocks: PositiveInt = 2
    num_heads: PositiveInt = 4
    head_dim: PositiveInt | None = None
    hidden_ratio: PositiveFloat = 4
    norm: Literal["post", "pre"] = "post"
