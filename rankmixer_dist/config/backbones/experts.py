"""Options of the mixtures of experts that take the place of RankMixer's per-token FFNs."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rankmixer_dist.schema import Strict

ActiveRatio = Annotated[float, Field(gt=0, le=1, description="share of a token's experts that a row uses when served")]


class DTSIConfig(Strict):
    """Per-token experts with ReLU routing, trained densely and served sparsely (RankMixer, section 3.4)."""

    kind: Literal["dtsi"]
    num_experts: PositiveInt = Field(default=8, description="E, of each token; each has the hidden width k * D")
    active_ratio: ActiveRatio = 0.125
    fusion: Literal["stochastic_rows", "stochastic_steps", "mean", "straight_through"] = Field(
        default="stochastic_rows", description="how the two routers share the training pass (layers/dtsi_moe.py)"
    )
    served_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.75, description="of fusion stochastic_*: share of the rows, or steps, trained as they are served"
    )
    initial_lambda: Annotated[float, Field(ge=1e-6)] = Field(
        default=1e-5, description="weight of the penalty at the start"
    )
    lambda_alpha: Annotated[float, Field(gt=1)] = Field(
        default=1.05, description="largest factor of a step on lambda, which stays"
    )
    lambda_gain: Annotated[float, Field(ge=1)] = Field(
        default=100, description="largest factor on lambda while the active share is off its target"
    )
    distillation_weight: NonNegativeFloat = Field(default=0.1, description="of fusion straight_through")


class SoftmaxTopKConfig(Strict):
    """Per-token experts behind a softmax top-k router, the same in training and when served."""

    kind: Literal["softmax_topk"]
    num_experts: PositiveInt = Field(default=8, description="E, of each token, the shared one included")
    active_ratio: ActiveRatio = 0.125
    shared_expert: bool = Field(default=False, description="one of the active experts is always the same")
    alpha: PositiveFloat | None = Field(default=None, description="factor on routed experts; E / k by default")
    sparse_training: bool = Field(default=False, description="train, too, only the experts that a row uses")
    balance_weight: NonNegativeFloat = Field(default=0.01, description="of the balance loss; 0 for the vanilla mixture")


MoEConfig = Annotated[DTSIConfig | SoftmaxTopKConfig, Field(discriminator="kind")]
