"""Checks of sizes that many layers and models share."""


def check_sizes(**sizes: int) -> None:
    """Raises ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} {size} must be at least 1")


def check_rank(*, rank: int, width: int) -> None:
    """Raises ValueError unless a matrix with `width` columns can be factored at `rank`."""
    if not 1 <= rank <= width:
        raise ValueError(f"rank {rank} must lie in 1..{width}, the width of what is factored")
