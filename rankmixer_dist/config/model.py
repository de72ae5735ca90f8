"""The dense model's section of a run: one backbone is chosen by name, and each has a section of its own options."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rankmixer_dist.config.backbones import BackboneName, Backbones
from rankmixer_dist.config.backbones.experts import DTSIConfig, SoftmaxTopKConfig
from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims
from rankmixer_dist.schema import Strict


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


class ModelConfig(Backbones):
    """The dense model; T, the number of tokens, is the sum over the semantic groups unless the tokenizer says else."""

    backbone: BackboneName = "rankmixer"
    token_dim: PositiveInt = Field(default=64, description="D")
    tokenizer: TokenizerConfig = TokenizerConfig()
    attention_hidden: tuple[PositiveInt, ...] = Field(default=(32, 16), description="target attention's MLP widths")
    attention_softmax: bool = False
    head_hidden: HiddenDims = Field(default=(), description="hidden widths of each task's head")

    @property
    def options(self) -> BackboneOptions:
        """Those of the chosen backbone."""
        return getattr(self, self.backbone)

    @property
    def mixture(self) -> DTSIConfig | SoftmaxTopKConfig | None:
        """The experts of the chosen backbone."""
        return self.rankmixer.moe if self.backbone == "rankmixer" else None

    def num_tokens(self, group_tokens: int) -> int:
        """T, given the tokens of all semantic groups."""
        tokenizer = self.tokenizer
        local = group_tokens if tokenizer.kind == "group" else tokenizer.num_tokens or group_tokens
        return local + tokenizer.global_token
