"""Distributed training of RankMixer ranking models: sparse tables by TorchRec, dense backbone by DeepSpeed."""


def __getattr__(name: str) -> str:
    """`__version__`, which the installed metadata knows; it is read when it is asked for, since that takes time."""
    if name == "__version__":
        from importlib.metadata import version

        return version("rankmixer_dist")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
