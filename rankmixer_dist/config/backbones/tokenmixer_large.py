"""Options of TokenMixer-Large."""

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions


class TokenMixerLargeOptions(BackboneOptions):
    """TokenMixer-Large."""

    num_blocks: PositiveInt = 4
    hidden_ratio: PositiveFloat = 1
    num_heads: PositiveInt | None = Field(default=None, description="as many as tokens by default")
    inter_residual: NonNegativeInt = 2
    down_init: Annotated[float, Field(ge=0, le=1)] = 0.01
    auxiliary_weight: NonNegativeFloat = Field(
        default=0.1, description="weight of each auxiliary stage's loss beside the output's; 0 for no auxiliary heads"
    )

    def arguments(self, *, token_dim: int, num_tasks: int) -> dict[str, Any]:
        """Without the weight, which the training step has."""
        found = super().arguments(token_dim=token_dim, num_tasks=num_tasks)
        del found["auxiliary_weight"]
        return found
