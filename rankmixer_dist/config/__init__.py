"""A run, as one YAML file: strict, typed and immutable. Importing it needs no torch."""

from rankmixer_dist.config.data import GroupConfig, KuaiRandSource, Source, SyntheticSource, TimeRange
from rankmixer_dist.config.load import load_config
from rankmixer_dist.config.model import BackboneName, DTSIConfig, ModelConfig, SoftmaxTopKConfig
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
    "MANNER",
    "BackboneName",
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
