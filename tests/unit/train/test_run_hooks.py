"""What validation tells the watchdog, and what becomes of its checkpoint where its rows have no room."""

from types import SimpleNamespace

import pytest

from rankmixer_dist.train import run_hooks
from rankmixer_dist.train.full_disk import Complaint
from rankmixer_dist.train.rank_counting import NotCounted, RankWorkers
from rankmixer_dist.train.run_hooks import RunHooks


@pytest.fixture
def hooks(one_rank, tmp_path):
    """All that `RunHooks` needs to validate, and its beats."""
    beats: list[tuple[int, str]] = []
    return SimpleNamespace(
        _tables=None,
        _engine=SimpleNamespace(module=None),
        _validation_rows=object(),
        _config=SimpleNamespace(run_dir=tmp_path, features=SimpleNamespace(tasks=("like",))),
        _topology=one_rank,
        _no_figures=Complaint("no figures"),
        _forget_exchanges=lambda: None,
        doing=lambda step, what: beats.append((step, what)),
        beats=beats,
    )


def test_every_batch_and_every_stage_of_counting_is_a_beat(hooks, monkeypatch):
    def score_split(*_, topology, on_batch, on_count, **__):
        for _ in range(2):
            on_batch(64)
        workers = RankWorkers(topology, on_count)
        assert workers.map("count", str, [(1,), (2,)]) == ["1", "2"]
        assert workers.map("PR-AUC", str, []) == []
        return {"tasks": {"like": {"auc": 0.5}}}

    monkeypatch.setattr(run_hooks, "score_split", score_split)
    assert RunHooks._validate(hooks, 7) == {"like.auc": 0.5}
    scoring = (7, "scoring the validation split")
    counting = [(7, f"counting the validation split: {stage}") for stage in ("count", "PR-AUC")]
    assert hooks.beats == [scoring, scoring, *counting, (7, "saving a checkpoint")]


def test_rows_without_room_leave_a_checkpoint_without_figures(hooks, monkeypatch, capsys):
    def score_split(*_, **__):
        raise NotCounted("no room")

    monkeypatch.setattr(run_hooks, "score_split", score_split)
    assert [RunHooks._validate(hooks, step) for step in (3, 6)] == [{}, {}]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("validated_rows.partial: cannot be written (no room); no figures")
