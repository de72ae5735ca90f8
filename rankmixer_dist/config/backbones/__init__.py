"""All backbones by the name that a config calls them; their classes are in the files of `models` of these names."""

from typing import TYPE_CHECKING, Literal

from rankmixer_dist.config.backbones.autoint import AutoIntOptions
from rankmixer_dist.config.backbones.dcn_v2 import DCNv2Options
from rankmixer_dist.config.backbones.dhen import DHENOptions
from rankmixer_dist.config.backbones.dlrm_mlp import DLRMMLPOptions
from rankmixer_dist.config.backbones.hetero_attention import HeteroAttentionOptions
from rankmixer_dist.config.backbones.hhft import HHFTOptions
from rankmixer_dist.config.backbones.hiformer import HiformerOptions
from rankmixer_dist.config.backbones.moe import MMoEOptions
from rankmixer_dist.config.backbones.rankmixer import RankMixerOptions
from rankmixer_dist.config.backbones.rdcn import RDCNOptions
from rankmixer_dist.config.backbones.tokenmixer_large import TokenMixerLargeOptions
from rankmixer_dist.config.backbones.wukong import WukongOptions
from rankmixer_dist.schema import Strict


class Backbones(Strict):
    """The options of each backbone."""

    rankmixer: RankMixerOptions = RankMixerOptions()
    tokenmixer_large: TokenMixerLargeOptions = TokenMixerLargeOptions()
    dlrm_mlp: DLRMMLPOptions = DLRMMLPOptions()
    dcn_v2: DCNv2Options = DCNv2Options()
    rdcn: RDCNOptions = RDCNOptions()
    moe: MMoEOptions = MMoEOptions()
    autoint: AutoIntOptions = AutoIntOptions()
    dhen: DHENOptions = DHENOptions()
    hiformer: HiformerOptions = HiformerOptions()
    wukong: WukongOptions = WukongOptions()
    hetero_attention: HeteroAttentionOptions = HeteroAttentionOptions()
    hhft: HHFTOptions = HHFTOptions()


BACKBONES = tuple(Backbones.model_fields)
if TYPE_CHECKING:
    BackboneName = str
else:
    BackboneName = Literal[BACKBONES]
