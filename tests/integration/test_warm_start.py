"""A run that starts from another's weights takes what matches by name and shape, and says what it did not take."""

import json

import pytest
import torch

from rankmixer_dist.checkpoint.folder import checkpoints, find_checkpoint
from rankmixer_dist.checkpoint.storage import read_pieces, read_whole
from rankmixer_dist.config import StartFrom, load_config
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import process_group
from rankmixer_dist.pieces import dense_key
from rankmixer_dist.sparse.shard import LocalTables, RowWiseAdagradSettings, init_tables, table_pieces
from rankmixer_dist.sparse.tables import EmbeddingTables
from rankmixer_dist.train.build import build_model, unknown_data
from rankmixer_dist.train.warm_start import warm_start

KEY = "train.start_from.run"


@pytest.fixture(scope="module")
def one_rank():
    """A process group of this process alone."""
    with process_group() as topology:
        yield topology


@pytest.fixture(scope="module")
def first(launch, small_config):
    """The directory of a run of 20 steps."""
    ended = launch.forked("launch/train.py", str(small_config), "name=first", "train.max_steps=20")
    assert ended.returncode == 0, ended.stderr[-2000:]
    return load_config(small_config, ["name=first"]).run_dir


def parts(config):
    """Tables and dense model as they start."""
    tables = LocalTables(
        EmbeddingTables(config.features, device=torch.device("cpu")), settings=RowWiseAdagradSettings(lr=0.1, eps=1e-8)
    )
    init_tables(tables, scale=0.01, seed=9)
    return tables, build_model(config, unknown_data(config.features))


def start(config, saved, *, rename=None, accumulators=True, features=None):
    """The config of a run that starts from a checkpoint."""
    begun = StartFrom(run=saved, rename=rename or {}, accumulators=accumulators)
    changed = {"train": config.train.model_copy(update={"start_from": begun})}
    return config.model_copy(update=changed | ({"features": features} if features else {}))


def held(tables):
    return {shard.table: (shard.weight.clone(), shard.sum.clone()) for shard in tables.local_shards()}


@pytest.mark.parametrize("accumulators", [True, False])
def test_what_matches_is_taken_and_the_rest_starts_afresh(small_config, first, one_rank, accumulators):
    saved = find_checkpoint(first, key=KEY)
    original, _ = parts(load_config(small_config))
    read_pieces(table_pieces(original), saved / "tensors")
    config = load_config(
        small_config, ["features.tables.author.rows=4000", "model.rankmixer.num_blocks=3", "model.head_hidden=[5]"]
    )
    tables, model = parts(config)
    before, weights = held(tables), {name: p.detach().clone() for name, p in model.named_parameters()}
    began = warm_start(saved, tables, model, one_rank, start(config, saved, accumulators=accumulators))
    after, expected = held(tables), held(original)
    assert began.fresh_tables == {"author": "rows was 4096 and is 4000"}
    assert torch.equal(after["author"][0], before["author"][0])
    for name in began.tables:
        assert torch.equal(after[name][0], expected[name][0])
        assert torch.equal(after[name][1], expected[name][1] if accumulators else before[name][1])
        assert float(expected[name][1].max()) > 0
    dense = read_whole(saved / "tensors")
    assert all(name.startswith(("backbone.blocks.2.", "heads.layers.")) for name in began.fresh_dense)
    assert {name for name, _ in model.named_parameters()} == {*began.dense, *began.fresh_dense}
    for name, parameter in model.named_parameters():
        expected_weight = dense[dense_key(name)].view_as(parameter) if name in began.dense else weights[name]
        assert torch.equal(parameter, expected_weight), name
    assert "6 of 7 tables" in str(began)
    assert "afresh: author (rows was 4096 and is 4000), backbone.blocks.2" in str(began)


def test_a_renamed_table_and_layer_are_taken_under_their_old_names(small_config, first, one_rank):
    saved = find_checkpoint(first, key=KEY)
    held_there = read_whole(saved / "tensors")
    config = load_config(small_config)
    tables, model = parts(config)
    rename = {"author": "video", "backbone.blocks.0.ffn": "backbone.blocks.1.ffn"}
    video = config.features.tables["video"]
    schema = config.features.model_copy(
        update={"tables": config.features.tables | {"author": video.model_copy(update={"salt": "video"})}}
    )
    for rename_wrongly, told in (({"autor": "author"}, "'autor' is no table"), ({"author": "vidoe"}, "'vidoe' is no")):
        with pytest.raises(UserError, match=told):
            warm_start(saved, tables, model, one_rank, start(config, saved, rename=rename_wrongly))
    tables = LocalTables(
        EmbeddingTables(schema, device=torch.device("cpu")), settings=RowWiseAdagradSettings(lr=0.1, eps=1e-8)
    )
    began = warm_start(saved, tables, model, one_rank, start(config, saved, rename=rename, features=schema))
    assert began.renamed["author"] == "video"
    assert began.renamed["backbone.blocks.0.ffn.up.weight"] == "backbone.blocks.1.ffn.up.weight"
    assert began.fresh_tables == {}
    for table in ("author", "video"):  # one table there, two here
        assert torch.equal(held(tables)[table][0], held_there["tables/video.weight"])
        assert torch.equal(held(tables)[table][1], held_there["tables/video.sum"])
    taken = held_there[dense_key("backbone.blocks.1.ffn.up.weight")]
    assert torch.equal(model.backbone.blocks[0].ffn.up.weight.view(-1), taken)
    assert "author" in began.unused
    assert "renamed: author was video" in str(began)


def test_groups_whose_features_changed_are_named(small_config, first, one_rank):
    config = load_config(small_config, ["features.features.hour.group=user"])
    tables, model = parts(config)
    saved = find_checkpoint(first, key=KEY)
    began = warm_start(saved, tables, model, one_rank, start(config, saved))
    assert began.changed_groups == ["user", "context"]


@pytest.mark.thorough
def test_two_ranks_start_where_one_stopped(launch, small_config, first):
    arguments = ["name=second", f"train.start_from.run={first}", "train.max_steps=1"]
    ended = launch.forked("launch/train.py", str(small_config), *arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "7 of 7 tables" in ended.stdout
    run_dir = load_config(small_config, ["name=second"]).run_dir
    assert json.loads((run_dir / "start.json").read_text())["fresh_dense"] == []
    # The first batch of both runs is the same; the loss is taken before the first update.
    losses = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"] for folder in (first, run_dir)]
    assert losses[1] < losses[0] - 0.1
    again = launch.forked("launch/train.py", str(small_config), *arguments[:2], "train.max_steps=2")
    assert "goes on from" in again.stdout
    assert "starts from" not in again.stdout


def test_nothing_to_start_from_is_refused(launch, small_config, first, tmp_path):
    refused = launch.forked(
        "launch/train.py", str(small_config), "name=third", f"train.start_from.run={tmp_path}", "train.max_steps=1"
    )
    assert refused.returncode == 2
    assert "no complete checkpoint there" in refused.stderr
    assert not load_config(small_config, ["name=third"]).run_dir.exists()
    with pytest.raises(UserError, match=r"train\.start_from\.run .*no complete checkpoint"):
        find_checkpoint(tmp_path, key=KEY)
    assert find_checkpoint(checkpoints(first)[-1], key=KEY) == checkpoints(first)[-1]
