"""All backbones by the name that a config calls them."""

from typing import Any

from rankmixer_dist.models.attention_stack import HHFT, HeteroAttention, Hiformer
from rankmixer_dist.models.autoint import AutoInt
from rankmixer_dist.models.backbone import Backbone
from rankmixer_dist.models.dcn_v2 import DCNv2
from rankmixer_dist.models.dhen import DHEN
from rankmixer_dist.models.dlrm_mlp import DLRMMLP
from rankmixer_dist.models.moe import MMoE
from rankmixer_dist.models.rankmixer import RankMixer
from rankmixer_dist.models.rdcn import RDCN
from rankmixer_dist.models.tokenmixer_large import TokenMixerLarge
from rankmixer_dist.models.wukong import Wukong

BACKBONES: dict[str, type[Backbone]] = {
    "rankmixer": RankMixer,
    "tokenmixer_large": TokenMixerLarge,
    "dlrm_mlp": DLRMMLP,
    "dcn_v2": DCNv2,
    "rdcn": RDCN,
    "moe": MMoE,
    "autoint": AutoInt,
    "dhen": DHEN,
    "hiformer": Hiformer,
    "wukong": Wukong,
    "hetero_attention": HeteroAttention,
    "hhft": HHFT,
}


def build_backbone(name: str, *, num_tokens: int, token_dim: int, **options: Any) -> Backbone:
    """The backbone called `name`, with its own options.

    Raises:
        ValueError: what its constructor refuses.
    """
    return BACKBONES[name](num_tokens=num_tokens, token_dim=token_dim, **options)
