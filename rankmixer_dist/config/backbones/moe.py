"""Options of the multi-gate mixture of experts."""

from typing import Any

from pydantic import Field, PositiveInt

from rankmixer_dist.config.backbones.options import BackboneOptions, HiddenDims


class MMoEOptions(BackboneOptions):
    """Multi-gate mixture of experts."""

    num_experts: PositiveInt = 4
    num_gates: PositiveInt | None = Field(default=None, description="one a task by default")
    hidden_dims: HiddenDims = (512, 256)

    def arguments(self, *, token_dim: int, num_tasks: int) -> dict[str, Any]:
        """With the gates counted."""
        found = super().arguments(token_dim=token_dim, num_tasks=num_tasks)
        return found | {"num_gates": self.num_gates or num_tasks}
