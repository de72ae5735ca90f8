"""Table lookups against a loop over rows and ids, gradients included; starting weights under any split."""

import hashlib
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from rankmixer_dist.batch import JaggedIds
from rankmixer_dist.schema import Schema
from rankmixer_dist.sparse.init import fill_uniform_
from rankmixer_dist.sparse.shard import LocalTables, RowWiseAdagradSettings
from rankmixer_dist.sparse.tables import EmbeddingTables

SCHEMA = Schema.model_validate(
    {
        # `topic` is a wider table of a sequence, declared before the narrower one.
        "tables": {
            "topic": {"rows": 9, "dim": 12},
            "video": {"rows": 23, "dim": 4},
            "tag": {"rows": 11, "dim": 8},
        },
        "groups": {"all": 1},
        "features": {
            "topics": {"kind": "sequence", "table": "topic", "pooling": "mean", "max_length": 5, "group": "all"},
            "video": {"kind": "id", "table": "video", "group": "all"},
            "watched": {"kind": "sequence", "table": "video", "query": "video", "max_length": 5, "group": "all"},
            "shared": {"kind": "multi_id", "table": "video", "pooling": "mean", "group": "all"},
            "summed": {"kind": "multi_id", "table": "video", "pooling": "sum", "group": "all"},
            "tag": {"kind": "id", "table": "tag", "group": "all"},
            "tags": {"kind": "multi_id", "table": "tag", "pooling": "mean", "group": "all"},
            "all_tags": {"kind": "multi_id", "table": "tag", "pooling": "sum", "group": "all"},
        },
        "tasks": {"finish": {}},
    }
)


def random_ids(rows, seed):
    """Ids by feature and row; the last row is padding and has none, the one before has no bags."""
    random = torch.Generator().manual_seed(seed)
    by_feature = {}
    for name in SCHEMA.id_features():
        feature = SCHEMA.features[name]
        most = SCHEMA.tables[feature.table].rows
        counts = [1] * rows if feature.kind == "id" else torch.randint(0, 6, (rows,), generator=random).tolist()
        counts[-1] = 0
        if feature.kind != "id":
            counts[-2] = 0
        by_feature[name] = [torch.randint(0, most, (count,), generator=random) for count in counts]
    lengths = torch.tensor([[len(ids) for ids in each] for each in by_feature.values()], dtype=torch.int32)
    values = torch.cat([ids for each in by_feature.values() for ids in each])
    return JaggedIds.on_host(SCHEMA.id_features(), values, lengths), by_feature


def weights(tables):
    return {name.split(".")[-2]: parameter for name, parameter in tables.named_parameters()}


@pytest.mark.parametrize("rows", [2, 7])
def test_lookups_match_a_loop(rows):
    tables = EmbeddingTables(SCHEMA, device=torch.device("cpu"))
    table = weights(tables)
    ids, by_feature = random_ids(rows, seed=rows)
    found = tables(ids)
    expected = {}
    for name, feature in SCHEMA.features.items():
        vectors = [table[feature.table][each] for each in by_feature[name]]
        if feature.kind == "sequence":
            expected[name] = torch.cat(vectors)
            assert found.events[name].offsets.diff().tolist() == [len(v) for v in vectors]
        elif getattr(feature, "pooling", "sum") == "mean":
            expected[name] = torch.stack([v.sum(0) / max(1, len(v)) for v in vectors])
        else:
            expected[name] = torch.stack([v.sum(0) for v in vectors])
    outputs = {**found.vectors, **{name: events.values_ND for name, events in found.events.items()}}
    assert outputs.keys() == expected.keys()

    def gradients(tensors):
        total = sum(((place + 1) * tensors[name].sin()).sum() for place, name in enumerate(sorted(tensors)))
        return torch.autograd.grad(total, list(table.values()), retain_graph=True)

    for name in expected:  # exact up to the order of sums: 2e-8 seen
        torch.testing.assert_close(outputs[name], expected[name], rtol=0, atol=2e-7)
    for mine, reference in zip(gradients(outputs), gradients(expected), strict=True):  # 1e-6 seen
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-5)


def test_a_lookup_asks_the_device_for_no_value():
    def look_up(tables, ids):
        found = tables(ids)
        sum(part.sum() for part in found.tensors()).backward()

    ids, _ = random_ids(7, seed=1)
    tables = EmbeddingTables(SCHEMA, device=torch.device("cpu"))
    # Within operators: on a GPU each of these waits for it.
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        look_up(tables, ids)
    called = {event.name for event in profiled.events()}
    assert "aten::segment_reduce" in called
    assert not called & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"}
    # In Python: tensors without values raise where a value is asked for.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        values, lengths_FB = mode.from_tensor(ids.values), mode.from_tensor(ids.lengths_FB)
        look_up(
            EmbeddingTables(SCHEMA, device=torch.device("cpu")),
            JaggedIds(ids.features, values, lengths_FB, ids.counts),
        )


def test_the_null_twin_updates_inside_backward_at_the_rate_it_was_given():
    tables = LocalTables(
        EmbeddingTables(SCHEMA, device=torch.device("cpu")), settings=RowWiseAdagradSettings(lr=9.0, eps=1e-8)
    )
    before = {shard.table: shard.weight.clone() for shard in tables.local_shards()}
    ids, _ = random_ids(5, seed=1)
    tables.set_lr(0.5)
    tables(ids).vectors["tag"].sum().backward()
    shards = {shard.table: shard for shard in tables.local_shards()}
    tag_ids = ids.values[: int(ids.lengths_FB[: ids.features.index("tag") + 1].sum())]
    for row in range(SCHEMA.tables["tag"].rows):
        times = int((tag_ids == row).sum())  # the gradient of a row that was looked up n times is n everywhere
        step = 0.5 if times else 0.0
        torch.testing.assert_close(before["tag"][row] - shards["tag"].weight[row], torch.full((8,), step))
        assert float(shards["tag"].sum[row]) == times**2
    torch.testing.assert_close(shards["video"].weight, before["video"])


def test_starting_weights_do_not_depend_on_the_split():
    whole = torch.full((1000, 12), torch.nan)
    fill_uniform_(whole, scale=0.25, seed=3, table="user")
    parts = [torch.full((rows, 12), torch.nan) for rows in (1, 333, 666)]
    first = 0
    for part in parts:
        fill_uniform_(part, scale=0.25, seed=3, table="user", first_row=first)
        first += len(part)
    assert torch.equal(torch.cat(parts), whole)


class Peak(TorchDispatchMode):
    """The most bytes of tensors other than `known` that live at a time."""

    def __init__(self, known):
        super().__init__()
        self._live, self.most = {known.untyped_storage()._cdata: 0}, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            if storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
            self.most = max(self.most, sum(self._live.values()))
        return found


def test_starting_a_table_takes_little_memory_beside_it_and_gives_the_same_values_as_ever():
    weight = torch.empty(1 << 17, 40)  # several blocks, the last not full
    with Peak(weight) as peak:
        fill_uniform_(weight, scale=0.01, seed=7, table="user", first_row=12_345)
    assert peak.most < 50e6  # 169e6 where the block is filled at once, 8 times as much as it takes itself
    digest = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
    assert digest == "2f4f4c29019a4d2e7a6481a39814d68761d90542b6c0701791ad34663c6019a5"


def test_starting_weights_are_uniform_and_differ_by_seed_and_table():
    def filled(seed, table):
        weight = torch.empty(20_000, 16)
        fill_uniform_(weight, scale=0.5, seed=seed, table=table)
        return weight

    weight = filled(1, "user")
    assert -0.5 <= weight.min() < -0.499
    assert 0.499 < weight.max() < 0.5
    # Four standard errors of the mean, and of the variance, of 320,000 uniform values.
    assert abs(weight.mean()) < 4 * 0.5 / 3**0.5 / 320_000**0.5
    assert abs(weight.var() - 0.25 / 3) < 4 * (4 / 45) ** 0.5 * 0.25 / 320_000**0.5
    neighbours = torch.corrcoef(torch.stack([weight[:-1].flatten(), weight[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 4 / 320_000**0.5
    for other in (filled(2, "user"), filled(1, "video")):
        assert abs(torch.corrcoef(torch.stack([weight.flatten(), other.flatten()]))[0, 1]) < 4 / 320_000**0.5
