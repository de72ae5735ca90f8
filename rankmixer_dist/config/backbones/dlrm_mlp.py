"""Options of DLRM-MLP."""

from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims


class DLRMMLPOptions(BackboneOptions):
    """DLRM-MLP."""

    hidden_dims: HiddenDims = (512, 256)
