"""Which mixture of experts takes the place of RankMixer's per-token FFNs, as plain values."""

from dataclasses import dataclass

from rankmixer_dist.layers.dtsi_moe import DTSIMoE, Fusion
from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.softmax_moe import SoftmaxTopKMoE

_WIDEST = 0.95
"""Share of open gates at the start where all are wanted."""


@dataclass(frozen=True)
class DTSI:
    """`layers.dtsi_moe`; `active_ratio`: share of the experts that the served path is to use.

    Twice as many gates are open at the start, or half of the others if that is less. Gates that close in a few steps
    take experts with them that were to learn: from .56 open, 1/8 cost .0011 AUC (finish, synthetic log, three seeds).
    """

    num_experts: int
    active_ratio: float
    fusion: Fusion = "stochastic_rows"
    served_share: float = 0.75

    def build(self, *, num_tokens: int, token_dim: int, hidden_dim: int) -> PerTokenMoE:
        """The layer of T tokens; `hidden_dim` is F of each expert."""
        return DTSIMoE(
            num_tokens=num_tokens,
            token_dim=token_dim,
            num_experts=self.num_experts,
            hidden_dim=hidden_dim,
            fusion=self.fusion,
            served_share=self.served_share,
            open_share=min(2 * self.active_ratio, (1 + self.active_ratio) / 2, _WIDEST),
            active_ratio=self.active_ratio,
        )


@dataclass(frozen=True)
class SoftmaxTopK:
    """`layers.softmax_moe`; the active ratio times the number of experts is k."""

    num_experts: int
    active_ratio: float
    shared_expert: bool = False
    alpha: float | None = None
    sparse_training: bool = False

    @property
    def top_k(self) -> int:
        """k, the active experts of each row and token.

        Raises:
            ValueError: the active ratio is not that of whole experts.
        """
        top_k = round(self.active_ratio * self.num_experts)
        if abs(top_k - self.active_ratio * self.num_experts) > 1e-6 or top_k < 1:
            raise ValueError(
                f"active_ratio {self.active_ratio} of {self.num_experts} experts is not a whole number of them; "
                f"use a multiple of 1/{self.num_experts}, such as {max(top_k, 1) / self.num_experts:g}"
            )
        return top_k

    def build(self, *, num_tokens: int, token_dim: int, hidden_dim: int) -> PerTokenMoE:
        """The layer of T tokens; `hidden_dim` is F of each expert."""
        return SoftmaxTopKMoE(
            num_tokens=num_tokens,
            token_dim=token_dim,
            num_experts=self.num_experts,
            hidden_dim=hidden_dim,
            top_k=self.top_k,
            shared_expert=self.shared_expert,
            alpha=self.alpha,
            sparse_training=self.sparse_training,
        )


Mixture = DTSI | SoftmaxTopK
