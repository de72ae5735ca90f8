"""Options of RDCN."""

from pydantic import PositiveFloat, PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims


class RDCNOptions(BackboneOptions):
    """RDCN."""

    num_layers: PositiveInt = 3
    rank: PositiveInt = 64
    slot_dim: PositiveInt = 1
    temperature: PositiveFloat = 1.0
    plain_cross: bool = True
    hidden_dims: HiddenDims = (512, 256)
