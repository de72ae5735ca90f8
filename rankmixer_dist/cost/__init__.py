"""Size and arithmetic of the dense part in closed form, and the peak rates that it is compared with."""

from rankmixer_dist.cost.frame import heads_part, mean_pooling_part, target_attention_part
from rankmixer_dist.cost.part import DenseCost, Part, total
from rankmixer_dist.cost.peak import peak_flops
from rankmixer_dist.cost.rankmixer import rankmixer_part

__all__ = [
    "DenseCost",
    "Part",
    "heads_part",
    "mean_pooling_part",
    "peak_flops",
    "rankmixer_part",
    "target_attention_part",
    "total",
]
