"""The exchanges of a group of one: token mixing as the layer does it, and the identity."""

import torch

from rankmixer_dist.layers.routing_report import RoutedRows
from rankmixer_dist.layers.token_mixing import mix_tokens
from rankmixer_dist.parallel.exchange import LocalTransport, TokenExchange


def test_mixing_without_ranks_is_token_mixing():
    exchange = TokenExchange(LocalTransport())
    x_TBD, residual_TBD = torch.randn(4, 5, 8), torch.randn(4, 5, 8)
    mixed = exchange.mix(x_TBD, residual_TBD)
    assert mixed.is_contiguous()
    assert torch.equal(mixed, residual_TBD + mix_tokens(x_TBD))
    assert torch.equal(exchange.mix(x_TBD), mix_tokens(x_TBD))
    strided_TBD = x_TBD.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(exchange.mix(strided_TBD), mix_tokens(x_TBD))


def test_the_other_exchanges_without_ranks_change_nothing():
    exchange = TokenExchange(LocalTransport())
    x_TBD = torch.randn(4, 5, 8)
    assert torch.equal(exchange.scatter(x_TBD), x_TBD)
    assert torch.equal(exchange.gather(x_TBD), x_TBD)
    assert torch.equal(exchange.sum_tokens([x_TBD[0]]), x_TBD[0])
    assert torch.equal(exchange.sum_tokens(x_TBD[0].split([3, 2])), x_TBD[0])


def test_what_is_known_of_rows_arrives_in_pieces():
    rows = RoutedRows(torch.arange(5) < 4, torch.arange(5) % 2 == 0)
    pieces = TokenExchange(LocalTransport()).rows_of_group(rows, 2)
    assert [len(piece.real_B) for piece in pieces] == [len(part) for part in torch.arange(5).chunk(2)]
    assert torch.equal(torch.cat([piece.real_B for piece in pieces]), rows.real_B)
    assert torch.equal(torch.cat([piece.served_B for piece in pieces]), rows.served_B)
