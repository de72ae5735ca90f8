"""Options of Hiformer."""

from pydantic import PositiveInt

from rankmixer_dist.config.backbones.hetero_attention import HeteroAttentionOptions


class HiformerOptions(HeteroAttentionOptions):
    """Hiformer."""

    rank: PositiveInt | None = None
