"""Whether a checkpoint's weights mean what a config would take them for; needs no torch."""

from pathlib import Path

from rankmixer_dist.checkpoint.about import About
from rankmixer_dist.checkpoint.description import describe_checkpoint
from rankmixer_dist.config import ModelConfig, RunConfig
from rankmixer_dist.errors import UserError, one_line
from rankmixer_dist.identity import checksums, difference_in_words, parts
from rankmixer_dist.schema import Schema


def what_it_means(checkpoint: Path, about: About) -> tuple[Schema, ModelConfig]:
    """The features and the model that a checkpoint's weights belong to.

    Raises:
        UserError: it cannot tell, or this program would take them for others.
    """
    try:
        features = Schema.model_validate(about.config.get("features"))
        model = ModelConfig.model_validate(about.config.get("model"))
    except ValueError as error:
        raise UserError(f"{checkpoint}: its config is not one of this program: {one_line(error)}") from error
    found = checksums(features, model)
    for part in sorted(found.keys() | about.identity.keys()):
        if found.get(part) != about.identity.get(part):
            raise UserError(f"{checkpoint}: written by a program to which {part} meant something else; use that one")
    return features, model


def require_same_meaning(checkpoint: Path, config: RunConfig) -> About:
    """What a checkpoint says of itself, if its weights mean what the config's model would take them for.

    Raises:
        UserError: they do not, and which part does not; or the checkpoint is damaged.
    """
    about = describe_checkpoint(checkpoint)
    features, model = what_it_means(checkpoint, about)
    difference = difference_in_words(parts(features, model), parts(config.features, config.model))
    if difference is not None:
        raise UserError(
            f"{checkpoint}: saved from another model: {difference}; give the config that it was saved with, or begin a "
            "run of another `name` with train.start_from"
        )
    return about
