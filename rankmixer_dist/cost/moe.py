"""Mixtures of per-token experts."""

from rankmixer_dist.cost.part import Part


def dtsi_moe_part(
    *, num_tokens: int, token_dim: int, num_experts: int, hidden_dim: int, active_ratio: float = 1.0
) -> Part:
    """One DTSI-MoE layer: T E (2DF + F + D) parameters of experts and 2 T E (D + 1) of its two routers.

    Forward means serving: 2 T E (2 r D F + 2 D) FLOPs a row at an active ratio r, for one router, the open experts and
    the gated sum of all down biases. Training computes all experts and both routers: 6 T E (2 D F + 3 D).

    Args:
        num_tokens: T.
        token_dim: D.
        num_experts: E.
        hidden_dim: F.
        active_ratio: r, share of the gates that are open in serving.

    Raises:
        ValueError: a ratio outside 0..1.
    """
    if not 0 <= active_ratio <= 1:
        raise ValueError(f"active_ratio {active_ratio} must be a share from 0 to 1")
    experts, gated_biases, weights = _experts(num_tokens, token_dim, num_experts, hidden_dim)
    router = num_tokens * token_dim * num_experts
    parameters = weights + 2 * (router + num_tokens * num_experts)
    forward = round(2 * active_ratio * experts) + 2 * (gated_biases + router)
    return Part("moe", parameters, forward, 6 * (experts + gated_biases + 2 * router))


def softmax_moe_part(
    *,
    num_tokens: int,
    token_dim: int,
    num_experts: int,
    hidden_dim: int,
    top_k: int,
    shared_expert: bool = False,
    sparse_training: bool = False,
) -> Part:
    """One softmax top-k layer: experts as in `dtsi_moe_part` with r = k / E, and one router of the routed experts."""
    experts, gated_biases, weights = _experts(num_tokens, token_dim, num_experts, hidden_dim)
    routed = num_experts - int(shared_expert)
    router = num_tokens * token_dim * routed
    active = experts // num_experts * top_k
    in_training = active if sparse_training else experts
    return Part(
        "moe",
        weights + router + num_tokens * routed,
        2 * (active + gated_biases + router),
        6 * (in_training + gated_biases + router),
    )


def _experts(num_tokens: int, token_dim: int, num_experts: int, hidden_dim: int) -> tuple[int, int, int]:
    """Multiply-adds of all experts, multiply-adds of gates times down biases, and parameters."""
    count = num_tokens * num_experts
    products = 2 * count * token_dim * hidden_dim
    return products, count * token_dim, products + count * (hidden_dim + token_dim)
