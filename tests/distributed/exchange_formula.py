"""What token parallelism, and plain expert parallelism, send between the ranks of a group."""

from dataclasses import dataclass

from rankmixer_dist.parallel.token_parallel import Spread


@dataclass(frozen=True)
class ExchangeCost:
    """Exchanges of one pass, forward or backward, which are alike, and the bytes that a rank sends to other ranks."""

    exchanges: int
    bytes_sent: int


def exchange_cost(
    mode: Spread,
    *,
    num_tokens: int,
    token_dim: int,
    num_blocks: int,
    expert_size: int,
    rows_per_rank: int,
    value_bytes: int,
    pieces: int = 1,
    reverts: bool = False,
    stages: int = 0,
) -> ExchangeCost:
    """One all-to-all sends (n - 1) / n of a rank's T B D values: L of them in token mode, 2 L in plain mode.

    TokenMixer-Large mixes twice a block, and its tokens go home before they are mixed at all: 2 L + 1 and 4 L.

    Token mode adds the pooling: each rank sends partial sums of D values, fp32 or wider, for the B rows of each of the
    n - 1 others, which is 4 n / (T value_bytes) of an all-to-all, and backward sends as much; and so for every stage.

    Args:
        num_tokens: T, a multiple of n.
        token_dim: D.
        num_blocks: L.
        expert_size: n, the ranks of a group.
        rows_per_rank: B.
        value_bytes: of an activation: 4 in fp32, 2 in bf16.
        pieces: in which token mode exchanges a rank's rows; at most B.
        reverts: it is TokenMixer-Large.
        stages: beside the output, which are pooled too.
    """
    if expert_size == 1:
        return ExchangeCost(0, 0)
    row_bytes = num_tokens // expert_size * token_dim * value_bytes
    all_to_all = (expert_size - 1) * rows_per_rank * row_bytes
    fed = 2 * num_blocks if reverts else num_blocks
    if mode == "plain":
        return ExchangeCost(2 * fed, 2 * fed * all_to_all)
    pooled, sent = 1 + stages, fed + reverts
    pooling = (expert_size - 1) * rows_per_rank * token_dim * max(4, value_bytes)
    return ExchangeCost(pieces * sent + pooled, sent * all_to_all + pooled * pooling)


def routed_rows_cost(*, expert_size: int, rows_per_rank: int) -> ExchangeCost:
    """What a mixture of experts adds to a forward pass in training: a byte of each row for the group's other ranks."""
    return ExchangeCost(int(expert_size > 1), (expert_size - 1) * rows_per_rank)
