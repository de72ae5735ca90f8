"""Size and arithmetic of one part of the dense model, and their sum.

Convention: 2 FLOPs per multiply-add of every matrix product, as `torch.utils.flop_counter` counts them: forward, and
backward for the gradients of all factors that need one. Products without weights are among them, as in attention. Left
out: biases, activations, norms, token mixing, sums over a row's events and all else that is element-wise, the optimizer
and the tables. A sequence counts at its mean length where that was measured, else at its longest.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of the dense model: its name, parameters, and FLOPs per row without and with the backward pass."""

    name: str
    parameters: int
    flops_per_row_forward: int
    flops_per_row_train: int


@dataclass(frozen=True)
class DenseCost:
    """Parameters and FLOPs of a dense model, the sum over its parts."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """Trainable parameters, the tables' excluded."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops_per_row_forward(self) -> int:
        """FLOPs of one row's forward pass."""
        return sum(part.flops_per_row_forward for part in self.parts)

    @property
    def flops_per_row_train(self) -> int:
        """FLOPs of one row's forward and backward pass."""
        return sum(part.flops_per_row_train for part in self.parts)

    def breakdown(self) -> dict[str, dict[str, int]]:
        """Part name -> its `parameters`, `flops_per_row_forward` and `flops_per_row_train`."""
        return {
            part.name: {
                "parameters": part.parameters,
                "flops_per_row_forward": part.flops_per_row_forward,
                "flops_per_row_train": part.flops_per_row_train,
            }
            for part in self.parts
        }
