"""What the options of all backbones share: how they become the arguments of its constructor."""

from typing import Any

from pydantic import PositiveInt

from rankmixer_dist.schema import Strict

HiddenDims = tuple[PositiveInt, ...]


class BackboneOptions(Strict):
    """A backbone's own section of a config.

    Options bear the names of the constructor's arguments, where they are explained, but for `hidden_ratio`, the hidden
    width in units of D. Defaults are sizes for D = 64.
    """

    def arguments(self, *, token_dim: int, num_tasks: int) -> dict[str, Any]:
        """What the constructor takes beside `num_tokens` and `token_dim`."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        if "hidden_ratio" in found:
            found["hidden_dim"] = round(found.pop("hidden_ratio") * token_dim)
        return found
