"""All backbones by the name that a config calls them."""

import importlib
from typing import Any

from rankmixer_dist.models.backbone import Backbone


def backbone_class(name: str) -> type[Backbone]:
    """The backbone that a config calls `name`: the one that `rankmixer_dist/models/<name>.py` defines."""
    module = importlib.import_module(f"rankmixer_dist.models.{name}")
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    (found,) = (value for value in own if isinstance(value, type) and issubclass(value, Backbone))
    return found


def build_backbone(name: str, *, num_tokens: int, token_dim: int, **options: Any) -> Backbone:
    """The backbone called `name`, with its own options.

    Raises:
        ValueError: what its constructor refuses.
    """
    return backbone_class(name)(num_tokens=num_tokens, token_dim=token_dim, **options)
