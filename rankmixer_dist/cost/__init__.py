"""Sizes of a dense model, memory and rates of GPUs: plain numbers, which `models.counted` and a run's plan fill in."""

from rankmixer_dist.cost.part import DenseCost, Part
from rankmixer_dist.cost.peak import peak_flops

__all__ = ["DenseCost", "Part", "peak_flops"]
