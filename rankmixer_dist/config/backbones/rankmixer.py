"""Options of RankMixer: paper-exact by default, and its ablations."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rankmixer_dist.config.backbones.experts import MoEConfig
from rankmixer_dist.config.backbones.options import BackboneOptions


class RankMixerOptions(BackboneOptions):
    """RankMixer, paper-exact by default, and its ablations."""

    num_blocks: PositiveInt = Field(default=2, description="L")
    hidden_ratio: PositiveFloat = Field(default=2, description="k: the per-token FFN's hidden width is k * D")
    norm: Literal["post", "pre", "none"] = "post"
    norm_kind: Literal["layer", "rms"] = "layer"
    skip: bool = True
    shared_ffn: bool = False
    mixing: Literal["heads", "self_attention", "concat_mlp", "share", "none"] = "heads"
    num_heads: PositiveInt | None = Field(default=None, description="as many as tokens by default")
    moe: MoEConfig | None = Field(default=None, description="experts in the place of the per-token FFNs")
