"""Options of Wukong."""

from pydantic import PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims


class WukongOptions(BackboneOptions):
    """Wukong."""

    num_layers: PositiveInt = 2
    num_fm: PositiveInt | None = None
    num_linear: PositiveInt | None = None
    rank: PositiveInt | None = None
    fm_hidden_dims: HiddenDims = (512,)
    hidden_dims: HiddenDims = (512, 256)
