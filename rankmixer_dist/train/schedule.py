"""Learning rate over steps."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to `peak` over `warmup_steps`, then a decay that ends at `peak * final_ratio` on the last step."""

    peak: float
    total_steps: int
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    final_ratio: float = 0.1

    def at(self, step: int) -> float:
        """The rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay == "none":
            return self.peak
        span = max(1, self.total_steps - 1 - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        shape = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * shape)
