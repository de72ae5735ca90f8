"""The evaluation as a loop: look for what is new, hand out work, take what is done, tell what is complete."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.streaming.checkpoints import (
    Checkpoint,
    Choice,
    Pins,
    TrainingRun,
    comes_short,
    is_settled,
    newest_before,
)
from data_pipeline.streaming.scoring import Figures, Item
from data_pipeline.streaming.shards import UNREAD, Facts, Stamp, arrived
from data_pipeline.streaming.shown import Shown
from data_pipeline.streaming.state import Lost, State
from data_pipeline.streaming.windows import WindowPlan
from data_pipeline.streaming.worker import Pool
from rankmixer_dist.config.stream import HOUR_S, StreamConfig
from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import Window
from rankmixer_dist.metrics.windows import iso


class Evaluator:
    """Follows a folder of shards and a training run.

    All that it decides or finishes is on disk first, so that it can be killed at any moment and started again: what is
    scored is not scored again, what was told is not told again, and figures are the same to the last bit.

    Args:
        shards: folder where they arrive.
        expected: the only names to take, and their checksums; None takes every `*.parquet`.
    """

    def __init__(
        self,
        config: StreamConfig,
        state: State,
        plan: WindowPlan,
        run: TrainingRun,
        pool: Pool,
        pins: Pins,
        shown: Shown,
        *,
        shards: Path,
        expected: Mapping[str, str] | None,
    ) -> None:
        self._config, self._state, self._plan, self._run = config, state, plan, run
        self._pool, self._pins, self._shown = pool, pins, shown
        self._folder, self._expected = shards, expected
        self._reading: dict[str, int] = {}  # with the horizon when it came
        # Whether those that were gone are there again is to be looked at.
        known = state.shards.keys() - state.come_short()
        self._seen: dict[str, Stamp] = {name: state.shards[name].stamp for name in known}
        self._scoring: set[tuple[str, Window]] = set()
        self._closing: set[Window] = set()
        self._passed: dict[Window, set[str]] = {}  # with the shards that were being read when it passed
        self._waiting_since: dict[Window, float] = {}
        self._news = time.monotonic()
        self._ending = False

    def run(self, stops: Callable[[], bool]) -> bool:
        """Goes on until the stream ends (True) or `stops` says so (False).

        Raises:
            UserError: a shard's folder or a checkpoint cannot be read, or work ends its actors again and again.
        """
        while not stops():
            self._look_for_shards()
            self._look_for_checkpoints()
            self._choose()
            self._hand_out()
            self._close()
            self._shown.update(self._state, reading=len(self._reading), replaced=self._pool.replaced)
            if self._ended():
                return True
            began = time.monotonic()
            for key, result in self._pool.finished(self._config.poll_s):
                self._news = time.monotonic()
                self._take(key, result)
            if not self._pool.calls:
                time.sleep(max(0.0, began + self._config.poll_s - time.monotonic()))
        return False

    def _look_for_shards(self) -> None:
        try:
            found = arrived(self._folder, None if self._expected is None else self._expected.keys())
        except OSError as error:
            raise UserError(
                f"{self._folder}: no folder of shards ({error.strerror}); make it or name another"
            ) from error
        for name in self._seen.keys() - found.keys():  # it may come back
            del self._seen[name]
        horizon = self._horizon()
        for name, stamp in sorted(found.items()):
            if name not in self._reading and self._seen.get(name) != stamp:
                self._seen[name], self._reading[name] = stamp, horizon
                self._hear()
                self._pool.call(("reading", name), "scan", self._folder / name)
        for name in (self._expected or {}).keys() - found.keys() - self._state.shards.keys():
            self._problem(name, f"{self._folder / name}: the manifest names it, but it is not there; prepare again")

    def _look_for_checkpoints(self) -> None:
        horizon = self._horizon()
        if self._pins.pin_all(self._run, horizon):
            self._hear()
        for checkpoint in self._pins.superseded(self._state.needed(), horizon):
            self._state.drop(checkpoint)
            self._pins.remove(checkpoint)

    def _hear(self) -> None:
        """Something came, so that the stream is not at its end."""
        self._news, self._ending = time.monotonic(), False

    def _horizon(self) -> int:
        """Start of the earliest window that may yet choose: one that is known, or one that is `keep_windows` late, when
        seen from the time at which a shard came that is still being read."""
        newest = self._state.newest
        if newest is None:
            return self._plan.start_ms
        late_ms = self._lateness_ms + self._config.keep_windows * self._plan.length_ms
        earliest = self._plan.at(max(self._plan.start_ms, newest - late_ms)).start
        undecided = [window.start for window in self._state.windows() if window not in self._state.choices]
        return min([earliest, *undecided, *self._reading.values()])

    @property
    def _lateness_ms(self) -> int:
        return round(self._config.lateness_hours * HOUR_S * 1000)

    def _choose(self) -> None:
        held = list(self._pins.held.values())
        finished: bool | None = None
        for window in self._state.windows():
            if window in self._state.choices:
                continue
            since = self._waiting_since.setdefault(window, time.monotonic())
            patience = self._config.checkpoint_wait_s
            waited = patience is not None and time.monotonic() - since > patience
            settled = is_settled(window.start, held)
            if not (waited or settled):
                finished = self._run.state() == "finished" if finished is None else finished
                if not finished:
                    continue
            self._state.choose(window, self._choice(window, newest_before(window.start, held), settled))

    def _choice(self, window: Window, best: Checkpoint | None, settled: bool) -> Choice:
        """The best that there is, unless training made a better one: an older one makes a window look worse than it is.

        Args:
            settled: training has reached the window.
        """
        gone = newest_before(window.start, self._state.dropped)
        if gone is not None and (best is None or best.step < gone.step):
            reason = f"{gone.path.name}, which is the one to score it, is no longer kept (stream.keep_windows)"
            return Choice(None, reason=reason)
        if best is None:
            reason = f"no checkpoint is known to have been trained on nothing at or after {iso(window.start)}"
            return Choice(None, reason=reason)
        due = self._run.due(window.start)
        if settled and due is not None and comes_short(best, due):
            reason = f"the checkpoint trained up to {iso(due)} was gone before it was seen (checkpoint.keep)"
            return Choice(None, reason=reason)
        return Choice(best.path.name, best.step, best.trained_until)

    def _hand_out(self) -> None:
        for window, choice in sorted(self._state.choices.items()):
            if choice.checkpoint is None or self._state.is_told(window):
                continue
            for name in self._state.missing(window):
                if (name, window) in self._scoring:
                    continue
                if choice.checkpoint not in self._pins.held:
                    self._lose(name, window, f"{choice.checkpoint}, which scored this window, is no longer kept")
                    continue
                self._scoring.add((name, window))
                item = Item(
                    shard=self._folder / name,
                    checksum=self._state.shards[name].checksum,
                    window=window,
                    checkpoint=self._pins.held[choice.checkpoint].path,
                    target=self._state.target(name, window),
                )
                self._pool.call(("scoring", name, window), "score", item)

    def _close(self) -> None:
        newest = self._state.newest
        for window, choice in sorted(self._state.choices.items()):
            passed = newest is not None and newest >= window.end + self._lateness_ms
            if not (passed or self._ending) or self._state.is_told(window) or window in self._closing:
                continue
            # A shard that was being read may have rows of any window; those that come later do not hold it up.
            if self._passed.setdefault(window, set(self._reading)) & self._reading.keys():
                continue
            names = self._state.members(window)
            if choice.checkpoint is None:
                self._tell(window, names, None, choice.reason)
            elif not self._state.missing(window):
                files = self._scored_files(window, names)
                if not files:
                    self._tell(window, names, None, "none of its rows could be scored")
                    continue
                self._closing.add(window)
                key = ("closing", window, tuple(names), tuple(files))
                self._pool.call(key, "figures", files, window, choice.checkpoint)

    def _scored_files(self, window: Window, names: Sequence[str]) -> list[Path]:
        return [self._state.target(name, window) for name in names if (name, window) in self._state.done]

    def _take(self, key: Any, result: Any) -> None:
        what, *about = key
        if what == "reading":
            del self._reading[about[0]]
            self._take_facts(result)
        elif what == "scoring":
            name, window = about
            self._scoring.discard((name, window))
            if isinstance(result, str):
                self._lose(name, window, result)
            else:
                self._state.done.add((name, window))
                self._shown.scored(result)
        else:
            window, names, files = about
            self._closing.discard(window)
            if list(files) != self._scored_files(window, names) or set(names) & set(self._state.missing(window)):
                return  # a shard has come back meanwhile
            bad = result.not_finite
            reason = f"{bad} of {result.rows} rows have a score that is not finite" if bad else None
            self._tell(window, list(names), result, reason)

    def _take_facts(self, facts: Facts) -> None:
        known = self._state.shards.get(facts.name)
        if facts.checksum == UNREAD:
            self._seen.pop(facts.name, None)  # it may have gone while it waited to be read
            self._problem(facts.name, str(facts.problem))
            return
        if known is not None and known.problem is None:
            if facts.checksum == known.checksum:
                self._state.find_again(facts.name, self._pins.held)
            else:
                path = self._folder / facts.name
                self._problem(facts.name, f"{path}: changed under its name; publish new rows under a new name")
            return
        if self._expected is not None and facts.problem is None and facts.checksum != self._expected[facts.name]:
            text = f"{self._folder / facts.name}: its checksum is not the manifest's; prepare the data again"
            facts = Facts(facts.name, facts.stamp, facts.checksum, {}, 0, None, text)
        if known is not None and known.checksum == facts.checksum:
            return
        self._state.add_shard(facts)
        if facts.problem is not None:
            self._shown.warn(f"set aside: {facts.problem}")

    def _lose(self, name: str, window: Window, reason: str) -> None:
        self._state.lost[name, window] = Lost(self._state.shards[name].rows[window], reason)
        self._problem(name, f"{reason}; rows of {window} are not scored")

    def _problem(self, name: str, text: str) -> None:
        if self._state.problems.get(name) != text:
            self._state.tell_problem(name, text)
            self._shown.warn(text)

    def _tell(self, window: Window, names: list[str], figures: Figures | None, reason: str | None) -> None:
        self._passed.pop(window, None)
        self._shown.told(self._state.tell(window, names, figures, reason))

    def _ended(self) -> bool:
        idle = self._config.stop_after_idle_s
        if idle is None or self._pool.calls:
            return False
        if self._ending:
            if not all(self._state.is_told(window) for window in self._state.choices):
                return False
            undecided = len(self._state.windows()) - len(self._state.choices)
            if undecided:
                self._shown.warn(f"{undecided} windows are open: training stopped before them; start both again")
            return True
        quiet = time.monotonic() - self._news > idle
        self._ending = quiet and self._run.state() != "running"
        return False
