"""The normalisations that a backbone may choose from."""

from typing import Literal

from torch import nn

NormKind = Literal["layer", "rms"]
"""layer: LayerNorm, centred and scaled, with gain and bias. rms: RMSNorm, scaled only, with gain."""


def norm_layer(kind: NormKind, dim: int) -> nn.Module:
    """A norm over the last `dim` values.

    RMSNorm gets LayerNorm's epsilon, so that the two compare like for like; torch's default depends on the dtype.

    Raises:
        ValueError: unknown `kind`.
    """
    if kind == "layer":
        return nn.LayerNorm(dim)
    if kind == "rms":
        return nn.RMSNorm(dim, eps=1e-5)
    raise ValueError(f"norm_kind {kind!r} is unknown; use 'layer' or 'rms'")
