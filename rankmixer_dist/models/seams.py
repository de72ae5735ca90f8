"""The seams of a backbone: where its tokens meet, and where each goes through weights of its own.

What lies between two seams acts on any of the tokens and any of the rows alone. So a backbone that is written down by
its seams (`Spreadable`) is written once: one rank passes them by `alone`, several by `parallel.token_parallel`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from rankmixer_dist.layers.per_token_moe import PerTokenMoE
from rankmixer_dist.layers.routing_report import RoutedRows, RoutingReport
from rankmixer_dist.layers.token_mixing import add_mixed, mix_tokens
from rankmixer_dist.models.backbone import Backbone, Pooled

End = TypeVar("End")


@dataclass(frozen=True)
class Home:
    """From here on a token may lie where its own weights are: [T, B, D] -> the same tokens, or [t, N, D] of others."""

    x_TBD: Tensor


@dataclass(frozen=True)
class Mix:
    """Tokens meet: [T, B, D] -> [H, B, E], mixed by `exchange`, and the residual is added to that, if there is one."""

    exchange: Callable[[Tensor], Tensor]
    x_TBD: Tensor
    residual_TBD: Tensor | None = None


@dataclass(frozen=True)
class Feed:
    """Each token goes through its own weights: [T, B, D] -> [T, B, D] by a per-token FFN or a mixture of experts."""

    layer: nn.Module
    x_TBD: Tensor


Seam = Home | Mix | Feed
Course = Generator[Seam, Tensor, Tensor]
"""A part of a forward pass: it stops at each seam, is told what comes of it, and gives [T, B, D] in the end."""
WholeCourse = Generator[Seam, Tensor, tuple[Tensor, ...]]
"""A forward pass: it gives tokens of each stage and of the output, last, all to be pooled by their mean over tokens."""


def here(seam: Seam, rows: RoutedRows | None, reports: list[RoutingReport]) -> Tensor:
    """What comes of a seam whose tokens and weights all lie on this rank; a mixture's report is added to `reports`."""
    match seam:
        case Home(x_TBD):
            return x_TBD
        case Mix(exchange, x_TBD, Tensor() as residual_TBD):
            if exchange is mix_tokens and x_TBD.device.type != "cpu":
                # The same bits in one pass over memory; a CPU is faster in two, at D / T = 8 by 7 % (bf16: 20 %).
                return add_mixed(residual_TBD, x_TBD)
            return residual_TBD + exchange(x_TBD)
        case Mix(exchange, x_TBD):
            return exchange(x_TBD)
        case Feed(PerTokenMoE() as layer, x_TBD):
            y_TBD, report = layer(x_TBD, rows)
            reports.append(report)
            return y_TBD
        case Feed(layer, x_TBD):
            return layer(x_TBD)


def passed(course: Generator[Seam, Tensor, End], at_seam: Callable[[Seam], Tensor]) -> End:
    """What a course gives in the end, where `at_seam` says what comes of each seam."""
    seam = next(course)
    while True:
        came = at_seam(seam)
        try:
            seam = course.send(came)
        except StopIteration as end:
            return end.value
        del came  # else it would take memory while the next layer computes


class Passes(Protocol):
    """What takes tokens past the seams of a backbone: `alone`, or something that knows other ranks."""

    def __call__(
        self, course: Callable[[Tensor], WholeCourse], x_TBD: Tensor, rows: RoutedRows | None
    ) -> tuple[Sequence[Tensor], Iterable[RoutingReport]]:
        """Tokens [T, B, D] -> pooled [B, D] of the stages and the output, and the reports of all mixtures."""
        ...


def alone(
    course: Callable[[Tensor], WholeCourse], x_TBD: Tensor, rows: RoutedRows | None
) -> tuple[Sequence[Tensor], Iterable[RoutingReport]]:
    """`Passes` on one rank, which has all tokens and weights."""
    reports: list[RoutingReport] = []
    ends = passed(course(x_TBD), lambda seam: here(seam, rows, reports))
    return [share_of_mean(end_TBD, len(end_TBD)) for end_TBD in ends], reports


def share_of_mean(x_tBD: Tensor, num_tokens: int) -> Tensor:
    """[t, B, D] -> [B, D], what these t of T tokens add to the mean over all of them.

    It is fp32 (or wider) even for bf16 tokens: it feeds fp32 heads, so that rounding it would only lose what the blocks
    computed. Divided last, so that the backward pass divides [B, D] and not its copy for every token.
    """
    return x_tBD.sum(dim=0, dtype=torch.promote_types(x_tBD.dtype, torch.float32)) / num_tokens


class Block(nn.Module, ABC):
    """A part of a backbone that is written down by its seams."""

    @abstractmethod
    def course(self, x_TBD: Tensor) -> Course:
        """[T, B, D] -> [T, B, D] of any of the tokens and rows."""

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D] on one rank."""
        return passed(self.course(x_TBD), lambda seam: here(seam, None, []))


class Spreadable(Backbone):
    """A backbone that is written down by its seams, so that its tokens can be spread over ranks.

    Attributes:
        num_tokens: T.
        passes: what takes its tokens past the seams.
    """

    num_tokens: int
    passes: Passes

    def __init__(self) -> None:
        super().__init__()
        self.passes = alone

    @abstractmethod
    def course(self, x_TBD: Tensor) -> WholeCourse:
        """The forward pass of tokens [T, B, D]."""

    @abstractmethod
    def fed_layers(self) -> Sequence[nn.Module]:
        """The layers of all `Feed` seams, in their order."""

    @abstractmethod
    def check_exchanges(self) -> None:
        """Makes sure that every `Mix` is token mixing with as many heads as tokens, its own inverse.

        Raises:
            ValueError: it is not.
        """

    def forward(self, x_BTD: Tensor, rows: RoutedRows | None = None) -> Pooled:
        """Tokens [B, T, D] -> pooled [B, D]; free of copies at the door when x_BTD lies token-major in memory."""
        (*stages, out_BD), routing = self.passes(self.course, x_BTD.transpose(0, 1), rows)
        return Pooled(out_BD, tuple(stages), tuple(routing))
