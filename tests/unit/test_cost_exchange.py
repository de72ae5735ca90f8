"""What spreading tokens over ranks sends, in closed form; tests/distributed counts it."""

import pytest

from rankmixer_dist.cost.exchange import ExchangeCost, exchange_cost

SIZES = {"num_tokens": 32, "token_dim": 1536, "num_blocks": 2, "rows_per_rank": 512}


@pytest.mark.parametrize("mode", ["token", "plain"])
def test_a_group_of_one_sends_nothing(mode):
    assert exchange_cost(mode, **SIZES, expert_size=1, value_bytes=2) == ExchangeCost(0, 0)


def test_the_parts_of_a_pass_add_up():
    # Three quarters of 512 x 32 x 1536 bf16 values leave the rank, and fp32 sums for 3 x 512 rows.
    all_to_all, pooling = 512 * 32 * 1536 * 2 * 3 // 4, 3 * 512 * 1536 * 4
    plain = exchange_cost("plain", **SIZES, expert_size=4, value_bytes=2)
    token = exchange_cost("token", **SIZES, expert_size=4, value_bytes=2)
    assert plain == ExchangeCost(4, 4 * all_to_all)
    assert token == ExchangeCost(3, 2 * all_to_all + pooling)


@pytest.mark.parametrize("value_bytes", [2, 4])
@pytest.mark.parametrize("expert_size", [2, 4, 8])
def test_the_pooling_is_the_stated_part_of_an_all_to_all(expert_size, value_bytes):
    token, plain = (
        exchange_cost(m, **SIZES, expert_size=expert_size, value_bytes=value_bytes) for m in ("token", "plain")
    )
    pooling = 4 * expert_size / (SIZES["num_tokens"] * value_bytes)
    assert token.bytes_sent / plain.bytes_sent == pytest.approx((2 + pooling) / 4)
