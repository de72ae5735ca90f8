"""What stands around every tokenizer and backbone: sequence pooling and heads."""

from collections.abc import Sequence
from itertools import pairwise

from rankmixer_dist.cost.part import Part, part_of


def target_attention_part(name: str, *, dim: int, length: int, hidden_dims: Sequence[int]) -> Part:
    """DIN pooling of `length` keys; its first layer, folded, does D F multiply-adds a key and D F a row."""
    dims = (*hidden_dims, 1)
    later = sum(i * o for i, o in pairwise(dims))
    parameters = 4 * dim * dims[0] + later + sum(dims)
    products = dim * dims[0] + length * (dim * dims[0] + later + dim)
    return part_of(name, parameters=parameters, products=products)


def mean_pooling_part(name: str, *, dim: int, length: int) -> Part:
    """Mean pooling of `length` keys; its weights are constants, so that only the keys get gradients."""
    return Part(name, 0, 2 * length * dim, 4 * length * dim)


def heads_part(*, in_dim: int, num_tasks: int, hidden_dims: Sequence[int] = ()) -> Part:
    """Task heads, each with its own layers."""
    pairs = list(pairwise((in_dim, *hidden_dims, 1)))
    weights = num_tasks * sum(i * o for i, o in pairs)
    return part_of("heads", parameters=weights + num_tasks * sum(o for _, o in pairs), products=weights)
