"""Rows that share a user side: what a lookup gives each row, and the tables' gradients, are those of rows alone."""

import pytest
import torch

from data_pipeline.job import SerialJob
from data_pipeline.loader import Loader
from data_pipeline.preprocess import preprocess
from rankmixer_dist.batch import Position
from rankmixer_dist.config import load_config
from rankmixer_dist.sparse.tables import EmbeddingTables


@pytest.fixture(scope="module")
def ways(small_config, tmp_path_factory):
    """Steps of the same rows, which share their user's day, and which do not."""
    folder = tmp_path_factory.mktemp("grouped") / "prepared"
    scopes = [f"features.features.{name}.scope=user" for name in ("user", "age_segment", "watched", "liked_tags")]
    config = load_config(small_config, [f"data.prepared={folder}", "data.group.by=user_id", *scopes])
    manifest = preprocess(config, progress=False, job=SerialJob())
    batches = []
    for shares in (True, False):
        loader = Loader(
            folder, manifest, config.features, split="train", batch_size=75, rank=0, world_size=1, shuffle="chunks",
            seed=1, lanes=1, prefetch=2, shares=shares,
        )  # fmt: skip
        batches.append([batch for batch, _ in loader.epoch(Position(0, 0))])
    return config, [*zip(*batches, strict=True)]


def test_a_lookup_gives_each_row_what_it_would_alone_and_its_gradients(ways):
    config, steps = ways
    torch.manual_seed(1)
    tables = EmbeddingTables(config.features, device=torch.device("cpu"))
    for shared, alone in (steps[0], steps[-1]):  # the last one ends in padding
        assert sum(shared.ids.counts) < 0.7 * sum(alone.ids.counts)
        found, gradients = [], []
        for batch in (shared, alone):
            embedded = tables(batch.ids)
            draw = torch.Generator().manual_seed(5)
            told = dict(embedded.vectors)
            told |= {f"events of {name}": events.values_ND for name, events in embedded.events.items()}
            loss = sum((torch.randn(each.shape, generator=draw) * each).sum() for each in told.values())
            tables.zero_grad()
            loss.backward()
            found.append(told | {f"offsets of {name}": events.offsets for name, events in embedded.events.items()})
            gradients.append({name: weight.grad.clone() for name, weight in tables.named_parameters()})
        for name in found[1]:
            assert torch.equal(found[0][name].detach(), found[1][name].detach().to(found[0][name].dtype)), name
        for name in gradients[1]:
            # The order of sums: of a group first, then of a table's row.
            torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-5, atol=1e-5)
