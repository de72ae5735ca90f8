"""What a run goes on with, or begins with: its own newest checkpoint, another run's, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankmixer_dist.checkpoint.description import describe_checkpoint
from rankmixer_dist.checkpoint.folder import find_checkpoint
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.identity import DataSeen, Rename
from rankmixer_dist.train.counterparts import Counterparts
from rankmixer_dist.train.meaning import require_same_meaning, what_it_means


@dataclass(frozen=True)
class Beginning:
    """What a run goes on with, or begins with.

    data: what it took from its data, when it began.
    planned_steps: how long it was to be then; None for a run that begins.
    trained_before: Unix ms, `trained_until` of the weights that it begins or goes on with; None if that is not known.
    others: the checkpoint of another run whose weights it begins with.
    """

    data: DataSeen
    planned_steps: int | None = None
    trained_before: int | None = 0
    others: Path | None = None


def start_checkpoint(config: RunConfig, saved: Sequence[Path]) -> Path | None:
    """Another run's checkpoint to begin with, if the config names one and this run has none of its own."""
    start = config.train.start_from
    return None if start is None or saved else find_checkpoint(start.run, key="train.start_from.run")


def beginning(config: RunConfig, saved: Sequence[Path], others: Path | None, data: DataSeen) -> Beginning:
    """What the newest of the run's own checkpoints says, or another run's that it starts from; else nothing.

    Args:
        saved: the run's own checkpoints.
        others: what `start_checkpoint` found.

    Raises:
        UserError: the checkpoint is damaged, of another model, or stands in the midst of other rows.
    """
    start = config.train.start_from
    if saved:
        about = require_same_meaning(saved[-1], config)
        then, now = about.data.stream, data.stream
        difference = then.difference(now) if then is not None and now is not None else None
        if difference is not None:
            raise UserError(
                f"{saved[-1]}: stands in another stream of rows than {config.data.prepared} gives: {difference}; to "
                f"train its weights on this one, choose another `name` and set train.start_from.run={config.run_dir}"
            )
        # Of a run that goes on, the checkpoint knows it of the weights that the run began with.
        before = about.trained_until if start is not None else 0
        return Beginning(about.data, planned_steps=about.planned_steps, trained_before=before)
    if start is None or others is None:
        return Beginning(data)
    about = describe_checkpoint(others)
    models = Counterparts(*what_it_means(others, about), config.features, config.model, Rename(start.rename))
    scaled = data.model_copy(update={"numerics": data.numerics | models.scales(about.data)})
    return Beginning(scaled, trained_before=about.trained_until, others=others)
