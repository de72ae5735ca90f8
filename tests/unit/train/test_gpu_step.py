"""What a step leaves a GPU and its host free of, seen without one: waits, events that pile up, needless exchanges."""

import dataclasses
import itertools
import traceback

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankmixer_dist.batch import Batch, JaggedIds
from rankmixer_dist.config import DenseConfig
from rankmixer_dist.parallel import preemption, spans
from rankmixer_dist.parallel.deepspeed_setup import deepspeed
from rankmixer_dist.parallel.engine import DeepSpeedEngine, OptimizerSettings, bucket_elements
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.topology import Topology
from rankmixer_dist.train.build import slow_on
from rankmixer_dist.train.device_copies import DeviceCopies
from rankmixer_dist.train.stopwatch import Stopwatch

GPU = torch.device("cuda", 0)


class Reads(TorchDispatchMode):
    """Where the host asked for a value, which on a GPU it would wait for."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if str(function) in ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"):
            places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()]
            # The step counters of torch's optimizers lie on the host.
            if not any("/torch/optim/" in place for place in places):
                self.places.append(places[-3:])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), *itertools.product((1, 2), ("fp32", "bf16"))])
def test_the_dense_step_waits_for_nothing(one_rank, monkeypatch, stage, precision, clip_norm):
    waits = []
    accelerator = deepspeed.accelerator.get_accelerator()
    monkeypatch.setattr(
        type(accelerator), "synchronize", lambda *args, **kwargs: waits.append(traceback.format_stack())
    )
    settings = OptimizerSettings(kind="adam", lr=0.01, clip_norm=clip_norm)
    module = nn.Linear(8, 4)
    engine = DeepSpeedEngine(module, settings, zero_stage=stage, precision=precision, rows_per_rank=3)
    x = torch.randn(3, 8).to(next(module.parameters()).dtype)
    waits.clear()
    for step in range(4):  # DeepSpeed's timer begins with the third
        with Reads() as reads:
            engine.backward(engine(x).float().square().sum())
            engine.step(0.01)
        assert not reads.places and not waits, (step, reads.places, waits)
    assert engine.updates == 4


def test_the_reduce_bucket_is_no_larger_than_the_model_and_bounded():
    assert bucket_elements(nn.Linear(8, 4)) == 36
    with torch.device("meta"):
        assert 4 * bucket_elements(nn.Linear(100_000, 10_000)) == 128 * 2**20


def test_what_keeps_a_gpu_waiting_is_said_where_there_is_one():
    waiting = DenseConfig(precision="bf16", zero_stage=0)
    assert "once a parameter in every step; dense.zero_stage=1 takes the same steps" in slow_on(waiting, GPU)
    assert slow_on(waiting, torch.device("cpu")) == ""
    for other in ({"precision": "bf16"}, {"zero_stage": 0}, {"engine": "plain", "zero_stage": 0}):
        assert slow_on(DenseConfig(**other), GPU) == ""


class Event:
    """Stands for a mark in a stream: the GPU passes the n-th made as its time comes to n, in milliseconds."""

    made = 0
    gpu_ms = 0.0

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        Event.made += 1
        self.at_ms = Event.made

    def query(self):
        return self.at_ms <= Event.gpu_ms

    def synchronize(self):
        Event.gpu_ms = max(Event.gpu_ms, self.at_ms)

    def elapsed_time(self, end):
        assert end.query()
        return end.at_ms - self.at_ms


def test_events_do_not_pile_up_though_nobody_asks_for_the_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.made, Event.gpu_ms = 0, 0.0
    watch, pairs = Stopwatch(GPU), spans.Spans()
    for _ in range(5000):
        start = spans.mark(GPU)
        pairs.add(start, spans.mark(GPU))
        watch.lap("dense")
        Event.gpu_ms = Event.made - 100  # the host is so far ahead
        assert len(pairs) <= 257 and sum(map(len, watch._spans.values())) <= 257
    assert pairs.seconds() == pytest.approx(5.0)
    assert watch.totals() == {"dense": pytest.approx(15.0)}
    assert watch.totals() == {}


def test_a_copy_to_a_gpu_goes_beside_its_steps_and_they_wait_for_it(monkeypatch):
    told = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            told.append(f"into {self.name}")

        def __exit__(self, *error):
            told.append(f"out of {self.name}")

        def wait_stream(self, other):
            told.append(f"{self.name} waits for {other.name}")

    steps = Stream("steps")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: steps)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: told.append((id(tensor), stream.name)))
    batch = batch_of(torch.zeros(3, 1))
    monkeypatch.setattr(Batch, "to", lambda self, device: told.append("copies") or self)
    assert DeviceCopies(GPU)(batch) is batch
    assert told[:4] == ["into copies", "copies", "out of copies", "steps waits for copies"]
    held = [getattr(owner, field.name) for owner in (batch, batch.ids) for field in dataclasses.fields(owner)]
    tensors = {id(value) for value in held if isinstance(value, torch.Tensor)}
    assert len(tensors) == 8
    assert set(told[4:]) == {(tensor, "steps") for tensor in tensors}


def batch_of(rows_B1: torch.Tensor) -> Batch:
    ids = JaggedIds.on_host(("tag",), torch.arange(3), torch.ones(1, 3, dtype=torch.int32))
    row = torch.arange(3)
    return Batch(row, row + 1, row + 2, torch.ones(3), rows_B1 + 3, rows_B1 + 4, ids, 3.0)


class Ranks:
    """Stands for two ranks of a group: the other is never asked to stop and takes its own time a step."""

    def __init__(self, other_s):
        self.exchanges, self.other_s = 0, other_s

    def all_reduce(self, told, op, group, async_op):
        assert async_op
        self.exchanges += 1
        told[1] = max(float(told[1]), self.other_s)
        return self

    def wait(self):
        pass


@pytest.mark.parametrize(
    ("own_s", "other_s", "every"),
    [(0.5, 0.5, 1), (0.001, 0.001, 16), (0.03, 0.03, 3), (0.001, 0.5, 1), (0.03, 0.001, 3), (0.0, 0.0, 16)],
)
def test_ranks_ask_one_another_a_tenth_of_a_second_apart_by_the_slowest(monkeypatch, own_s, other_s, every):
    ranks = Ranks(other_s)
    now = [0.0]
    monkeypatch.setattr(preemption.dist, "new_group", lambda backend: object())
    monkeypatch.setattr(preemption.dist, "destroy_process_group", lambda group: None)
    monkeypatch.setattr(preemption.dist, "all_reduce", ranks.all_reduce)
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: now[0])
    with StopRequest(Topology(0, 2, 0, 2, torch.device("cpu"))) as stop:
        for _ in range(20):  # the first window has the start of the run in it
            now[0] += own_s
            assert not stop.agreed()
        before = ranks.exchanges
        for _ in range(48 * 5):
            now[0] += own_s
            assert not stop.agreed()
        assert ranks.exchanges - before == 48 * 5 / every
        stop._on_signal(15, None)
        heard_after = 1
        while not stop.agreed():
            now[0] += own_s
            heard_after += 1
        assert heard_after <= every + 1
        assert stop.agreed() and stop.agreed()
        assert ranks.exchanges - before <= 48 * 5 / every + 1, "nobody asks once all have agreed"
