"""A run, as one YAML file: strict, typed and immutable. Importing it needs no torch."""

from rankmixer_dist.config.backbones import BACKBONES
from rankmixer_dist.config.backbones.experts import DTSIConfig, SoftmaxTopKConfig
from rankmixer_dist.config.data import GroupConfig, KuaiRandSource, Source, SyntheticSource, TimeRange
from rankmixer_dist.config.load import load_config
from rankmixer_dist.config.model import ModelConfig
from rankmixer_dist.config.run import (
    MANNER,
    BestCheckpoint,
    DenseConfig,
    RunConfig,
    Schedule,
    StartFrom,
)
from rankmixer_dist.config.stream import StreamConfig

__all__ = [
    "BACKBONES",
    "MANNER",
    "BestCheckpoint",
    "DTSIConfig",
    "DenseConfig",
    "GroupConfig",
    "KuaiRandSource",
    "ModelConfig",
    "RunConfig",
    "Schedule",
    "SoftmaxTopKConfig",
    "Source",
    "StartFrom",
    "StreamConfig",
    "SyntheticSource",
    "TimeRange",
    "load_config",
]
