"""The dense model's section of a run: one backbone is chosen by name, and each has a section of its own options.

The options bear the names of the backbones' arguments (`rankmixer_dist.models`), where they are explained, but for
`hidden_ratio`, the hidden width in units of D. Defaults are sizes for D = 64; all of them fit every configuration.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rankmixer_dist.schema import Strict

HiddenDims = tuple[PositiveInt, ...]


class TokenizerConfig(Strict):
    """How features become tokens."""

    kind: Literal["group", "chunk", "auto_split"] = Field(
        default="group",
        description="group: each semantic group gives its tokens; chunk: the row in equal pieces; auto_split: all "
        "tokens read all features",
    )
    num_tokens: PositiveInt | None = Field(
        default=None, description="of chunk and auto_split; as many as the groups have by default"
    )
    hidden_ratio: PositiveFloat | None = Field(
        default=None, description="hidden width of an MLP a group or token, in units of D; null for linear projections"
    )
    global_token: bool = Field(default=False, description="one more token, an MLP of all features")


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


class RankMixerConfig(Strict):
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


class TokenMixerLargeConfig(Strict):
    """TokenMixer-Large."""

    num_blocks: PositiveInt = 4
    hidden_ratio: PositiveFloat = 1
    num_heads: PositiveInt | None = Field(default=None, description="as many as tokens by default")
    inter_residual: NonNegativeInt = 2
    down_init: Annotated[float, Field(ge=0, le=1)] = 0.01
    auxiliary_weight: NonNegativeFloat = Field(
        default=0.1, description="weight of each auxiliary stage's loss beside the output's; 0 for no auxiliary heads"
    )


class DLRMMLPConfig(Strict):
    """DLRM-MLP."""

    hidden_dims: HiddenDims = (512, 256)


class DCNv2Config(Strict):
    """DCN-V2."""

    num_layers: PositiveInt = 3
    rank: PositiveInt | None = None
    num_experts: PositiveInt = 1
    hidden_dims: HiddenDims = (512, 256)
    structure: Literal["parallel", "stacked"] = "parallel"


class RDCNConfig(Strict):
    """RDCN."""

    num_layers: PositiveInt = 3
    rank: PositiveInt = 64
    slot_dim: PositiveInt = 1
    temperature: PositiveFloat = 1.0
    plain_cross: bool = True
    hidden_dims: HiddenDims = (512, 256)


class MMoEConfig(Strict):
    """Multi-gate mixture of experts."""

    num_experts: PositiveInt = 4
    num_gates: PositiveInt | None = Field(default=None, description="one a task by default")
    hidden_dims: HiddenDims = (512, 256)


class AutoIntConfig(Strict):
    """AutoInt."""

    num_layers: PositiveInt = 3
    num_heads: PositiveInt = 2
    head_dim: PositiveInt | None = None
    scaled: bool = False


class DHENConfig(Strict):
    """DHEN."""

    num_layers: PositiveInt = 2
    interactions: tuple[Literal["dot", "cross", "attention", "linear"], ...] = ("dot", "cross", "attention", "linear")
    ensemble: Literal["concat", "sum"] = "concat"
    tokens_per_module: PositiveInt | None = None
    num_heads: PositiveInt = 1
    ffn_dim: PositiveInt | None = None
    rank: PositiveInt = 64
    dot_hidden_dims: HiddenDims = (512,)
    hidden_dims: HiddenDims = (512, 256)


class WukongConfig(Strict):
    """Wukong."""

    num_layers: PositiveInt = 2
    num_fm: PositiveInt | None = None
    num_linear: PositiveInt | None = None
    rank: PositiveInt | None = None
    fm_hidden_dims: HiddenDims = (512,)
    hidden_dims: HiddenDims = (512, 256)


class HeteroAttentionConfig(Strict):
    """Heterogeneous attention."""

    num_blocks: PositiveInt = 2
    num_heads: PositiveInt = 4
    head_dim: PositiveInt | None = None
    hidden_ratio: PositiveFloat = 4
    norm: Literal["post", "pre"] = "post"


class HiformerConfig(HeteroAttentionConfig):
    """Hiformer."""

    rank: PositiveInt | None = None


class HHFTConfig(Strict):
    """Heterogeneous attention blocks, then Hiformer's."""

    num_hetero_blocks: PositiveInt = 2
    num_hiformer_blocks: PositiveInt = 1
    num_heads: PositiveInt = 4
    head_dim: PositiveInt | None = None
    rank: PositiveInt | None = None
    hidden_ratio: PositiveFloat = 4
    norm: Literal["post", "pre"] = "post"


BackboneName = Literal[
    "rankmixer", "tokenmixer_large", "dlrm_mlp", "dcn_v2", "rdcn", "moe", "autoint", "dhen", "hiformer", "wukong",
    "hetero_attention", "hhft",
]  # fmt: skip
"""The sections of `ModelConfig` that hold a backbone's options; `rankmixer_dist.models.backbones` has their classes."""


class ModelConfig(Strict):
    """The dense model; T, the number of tokens, is the sum over the semantic groups unless the tokenizer says else."""

    backbone: BackboneName = "rankmixer"
    token_dim: PositiveInt = Field(default=64, description="D")
    tokenizer: TokenizerConfig = TokenizerConfig()
    attention_hidden: tuple[PositiveInt, ...] = Field(default=(32, 16), description="target attention's MLP widths")
    attention_softmax: bool = False
    head_hidden: HiddenDims = Field(default=(), description="hidden widths of each task's head")
    rankmixer: RankMixerConfig = RankMixerConfig()
    tokenmixer_large: TokenMixerLargeConfig = TokenMixerLargeConfig()
    dlrm_mlp: DLRMMLPConfig = DLRMMLPConfig()
    dcn_v2: DCNv2Config = DCNv2Config()
    rdcn: RDCNConfig = RDCNConfig()
    moe: MMoEConfig = MMoEConfig()
    autoint: AutoIntConfig = AutoIntConfig()
    dhen: DHENConfig = DHENConfig()
    hiformer: HiformerConfig = HiformerConfig()
    wukong: WukongConfig = WukongConfig()
    hetero_attention: HeteroAttentionConfig = HeteroAttentionConfig()
    hhft: HHFTConfig = HHFTConfig()

    @property
    def mixture(self) -> DTSIConfig | SoftmaxTopKConfig | None:
        """The experts of the chosen backbone."""
        return self.rankmixer.moe if self.backbone == "rankmixer" else None

    def num_tokens(self, group_tokens: int) -> int:
        """T, given the tokens of all semantic groups."""
        tokenizer = self.tokenizer
        local = group_tokens if tokenizer.kind == "group" else tokenizer.num_tokens or group_tokens
        return local + tokenizer.global_token
