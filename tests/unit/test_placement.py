"""Where tables go on GPUs that are not there, and that training places them alike."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner

from rankmixer_dist.config import load_config
from rankmixer_dist.cost.gpu import gpu_of_key
from rankmixer_dist.embedded import Embedded, Events
from rankmixer_dist.errors import UserError
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.sparse import placement, shard
from rankmixer_dist.sparse.room import Room
from rankmixer_dist.train import build
from rankmixer_dist.train.dense_memory import kept_for_backward
from rankmixer_dist.train.room import Host
from rankmixer_dist.verbs import plan as plan_verb

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
# Tables of a size that GPUs are needed for; all but `user` are looked up through histories, too.
LARGE = [f"features.tables.{name}.rows={rows}" for name, rows in (("user", 400_000_000), ("video", 100_000_000))]
H100 = Host(8, None, gpu_of_key("h100"))


def config_of(*overrides):
    return load_config(QUICKSTART, ["data.prepared=nowhere", *overrides])


def placed(config, host=H100, *, hosts=2, ids_per_row=None):
    ranks = hosts * host.ranks
    rows = config.loader.batch_size // ranks
    room = build.room_on(config, host, ranks=ranks, rows_per_rank=rows, saves=True, ids_per_row=ids_per_row)
    found = placement.planned(config.features, ranks=ranks, fixed=config.sparse.sharding, room=room)
    return {table["name"]: table for table in found.tables}


@pytest.fixture
def rank_of(monkeypatch):
    """Joins a group of so many ranks, of which only this process exists."""

    def join(rank, ranks):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)

    yield join
    if dist.is_initialized():
        dist.destroy_process_group()


class Caught(Exception):
    """What training hands to TorchRec."""


def plan_of_training(monkeypatch, config, host, *, hosts):
    """The sharding plan with which rank 0 of a training run on so many hosts comes to its GPU."""

    def model(module, **given):
        raise Caught(given["plan"])

    monkeypatch.setattr(shard, "DistributedModelParallel", model)
    monkeypatch.setattr(build, "host_here", lambda device, ranks: dataclasses.replace(host, ranks=ranks))
    ranks = hosts * host.ranks
    topology = Topology(0, ranks, 0, host.ranks, torch.device("cuda", 0))
    with pytest.raises(Caught) as caught:
        build.build_tables(config, topology, rows_per_rank=topology.share_of(config.loader.batch_size), saves=True)
    return caught.value.args[0]


def verb(*arguments):
    plan_verb.main([QUICKSTART, *arguments, "data.prepared=nowhere"])


@pytest.mark.parametrize("overrides", [[], LARGE, [*LARGE, "sparse.sharding={user: table_wise, tag: row_wise}"]])
def test_plan_tells_what_training_does(monkeypatch, capsys, tmp_path, rank_of, overrides):
    verb("--nodes", "2", "--gpus", "8", "--gpu", "H100", "--json", str(tmp_path / "plan.json"), *overrides)
    told = json.loads((tmp_path / "plan.json").read_text())
    shown = capsys.readouterr().out
    assert "2 x 8 h100 GPUs, 32 rows each" in shown
    rank_of(0, 16)
    plan = plan_of_training(monkeypatch, config_of(*overrides), H100, hosts=2)
    found = {table: made for of_module in plan.plan.values() for table, made in of_module.items()}
    assert found.keys() == {table["name"] for table in told["tables"]}
    for table in told["tables"]:
        made = found[table["name"]]
        assert (made.sharding_type, made.ranks) == (table["sharding"], table["ranks"])
        assert table["name"] in shown


def test_pooling_factors_decide_where_a_table_of_histories_lies():
    config = config_of(*LARGE, "loader.batch_size=8192")
    history = next(name for name, feature in config.features.features.items() if feature.kind == "sequence")
    table = config.features.features[history].table
    few, many = (placed(config, ids_per_row={history: ids})[table] for ids in (1.0, 40.0))
    assert (few["sharding"], many["sharding"]) == ("table_wise", "row_wise")
    assert many["ranks"] == list(range(16))
    assert 40.0 in many["ids_per_row"]
    assert placed(config)[table]["ids_per_row"] == [
        feature.max_length / 2 if feature.kind == "sequence" else 1.0
        for feature in (config.features.features[name] for name in config.features.features_of(table))
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["features.tables.user.rows=400000000000"], ["the memory of 16 ranks: they need", "user 25,331.97 GiB"]),
        (
            ["features.tables.user.rows=1500000000", "sparse.sharding={user: table_wise}"],
            ["larger than a rank's share and not to be cut: user; set fewer rows"],
        ),
        (
            ["features.tables.user.rows=1500000000", "sparse.sharding={user: row_wise}", "sparse.memory_gib=5"],
            ["16 x 5.00 GiB"],
        ),
        (["model.token_dim=16384"], ["the dense model does not fit a GPU's 74.51 GiB", "sparse.memory_gib"]),
    ],
)
def test_what_does_not_fit_is_one_line_for_plan_and_for_training(monkeypatch, capsys, rank_of, overrides, words):
    config = config_of(*overrides)
    rank_of(0, 16)
    with pytest.raises(UserError) as refused:
        plan_of_training(monkeypatch, config, H100, hosts=2)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
    options = ("--nodes", "2", "--gpus", "8", "--gpu", "h100")
    try:
        verb(*options, *overrides)
        told = capsys.readouterr().out
    except UserError as error:
        told = str(error)
    assert str(refused.value) in told


@pytest.mark.parametrize(
    ("overrides", "least"),
    [
        (["features.tables.user.rows=400000000000"], "; 378 ranks like these at least"),
        # More ranks are no help where one table has to lie on one of them.
        (["features.tables.user.rows=1500000000", "sparse.sharding={user: table_wise}"], ""),
        (["sparse.memory_gib=1e-12"], "; 3,694,528 ranks like these at least"),
    ],
)
def test_how_many_ranks_are_needed_is_told_where_more_would_do(capsys, overrides, least):
    verb("--nodes", "2", "--gpus", "8", "--gpu", "h100", *overrides)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert line.endswith(f"or use more machines{least}")


def test_data_of_another_config_is_not_taken_for_none(capsys, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    plan_verb.main([QUICKSTART, "--ranks", "2", f"data.prepared={tmp_path}"])
    assert f"ids a row estimated, as {tmp_path} holds no data prepared for this config" in capsys.readouterr().out


def test_shards_are_named_by_the_devices_that_their_ranks_have(monkeypatch, rank_of):
    """Whatever the launcher: here each process sees one GPU, and the last host's are smaller."""
    rooms = [(2**30, "cuda:0")] * 3 + [(2**20, "cuda:0")]

    def gathered(out, mine, group=None):
        assert mine == rooms[0]
        out[:] = rooms

    rank_of(0, 4)
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    room = Room(torch.device("cuda", 0), rows_per_rank=32, memory_bytes=2**30, local_world_size=2)
    small = config_of("features.tables.user.rows=1000").features
    found = placement.place(small, fixed=dict.fromkeys(small.tables, "table_wise") | {"video": "row_wise"}, room=room)
    shards = [
        shard for tables in found.plan.plan.values() for made in tables.values() for shard in made.sharding_spec.shards
    ]
    assert {str(shard.placement) for shard in shards} == {f"rank:{rank}/cuda:0" for rank in range(4)}
    assert found.memory_bytes == 2**20
    note = (
        "the tables are placed as if each rank had no more memory for them than rank 3, 0.00 GiB; rank 0 has 1.00 GiB"
    )
    assert found.note == note
    with pytest.raises(UserError, match=f"there are 4 x 0.00 GiB for tables.*; {note}$"):
        placement.place(config_of().features, fixed={"user": "table_wise"}, room=room)


def test_many_tables_on_many_ranks_are_not_tried_in_all_combinations(monkeypatch):
    declared = config_of().features
    tables = {f"user{number}": declared.tables["user"] for number in range(12)}
    features = {
        f"user{number}": declared.features["user"].model_copy(update={"table": f"user{number}"}) for number in range(12)
    }
    schema = declared.model_copy(update={"tables": tables, "features": features})
    tried = []
    partition = GreedyPerfPartitioner.partition
    monkeypatch.setattr(
        GreedyPerfPartitioner, "partition", lambda *args, **kwargs: tried.append(1) or partition(*args, **kwargs)
    )
    counts = {}
    for ranks in (2, 64):
        tried.clear()
        room = Room(torch.device("cuda", 0), rows_per_rank=8, memory_bytes=2**40, local_world_size=2)
        placement.planned(
            schema, ranks=ranks, fixed={} if ranks > 2 else dict.fromkeys([*tables][4:], "row_wise"), room=room
        )
        counts[ranks] = len(tried)
    assert counts[2] >= 2**4
    assert counts[64] < 50


@pytest.mark.parametrize("backbone", ["rankmixer", "dcn_v2"])
def test_what_a_step_keeps_is_what_a_real_one_keeps(backbone):
    rows = 16
    config = config_of(f"model.backbone={backbone}")
    schema, model = config.features, build.build_model(config, build.unknown_data(config.features))
    weights = {weight.data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(saved):
        if saved.untyped_storage().data_ptr() not in weights:
            kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    vectors, events = {}, {}
    for name, feature in schema.features.items():
        if feature.kind in ("id", "multi_id"):
            vectors[name] = torch.randn(rows, schema.tables[feature.table].dim, requires_grad=True)
        elif feature.kind == "sequence":
            longest = feature.max_length
            values_ND = torch.randn(rows * longest, schema.tables[feature.table].dim, requires_grad=True)
            events[name] = Events(values_ND, torch.arange(0, rows * longest + 1, longest, dtype=torch.int32))
    numerics = torch.randn(rows, sum(feature.kind == "numeric" for feature in schema.features.values()))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        model.train()(Embedded(vectors, events), numerics).logits_BK.sum().backward()
    told = kept_for_backward(config, build.weightless_model(config), rows)
    assert told == sum(kept.values())
    assert kept_for_backward(config, build.weightless_model(config), 2 * rows) > 1.9 * told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--nodes", "2"], "go with --gpus or --ranks"),
        (["--gpu", "h100"], "--gpu goes with --gpus"),
        (["--gpus", "8", "--gpu", "h10"], "--gpu h10: not known; did you mean 'h100'?"),
        (["--ranks", "2", "--host-memory", "-1"], "no memory"),
        (["--ranks", "3"], "batch size 512 cannot be shared evenly by 3 ranks"),
        (["--nodes", "65536", "--gpus", "65536", "--gpu", "h100"], "cannot be shared evenly by 4294967296 ranks"),
        (["--ranks", "4", "parallel.expert_size=3"], "parallel.expert_size: expert size 3 does not divide the 4 ranks"),
        (["--ranks", "2", "sparse.placement=local"], "are for one process; use the defaults"),
    ],
)
def test_options_that_do_not_go_together(options, told):
    with pytest.raises(UserError) as refused:
        verb(*options)
    assert told in str(refused.value)


def test_hosts_of_an_odd_number_of_ranks(capsys):
    verb("--nodes", "3", "--gpus", "5", "--gpu", "l4", "loader.batch_size=510", "sparse.sharding={user: row_wise}")
    shown = capsys.readouterr().out
    assert "3 x 5 l4 GPUs, 34 rows each" in shown
    assert "0\N{EN DASH}14" in shown
    verb("--nodes", "2", "--ranks", "2", "--host-memory", "8")
    assert "2 x 2 CPU ranks, 128 rows each; a rank has 1.60 GiB for tables" in capsys.readouterr().out
