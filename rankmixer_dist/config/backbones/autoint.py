"""Options of AutoInt."""

from pydantic import PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions


class AutoIntOptions(BackboneOptions):
    """AutoInt."""

    num_layers: PositiveInt = 3
    num_heads: PositiveInt = 2
    head_dim: PositiveInt | None = None
    scaled: bool = False
