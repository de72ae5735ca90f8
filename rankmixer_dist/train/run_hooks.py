"""What a run does beside its steps: log, save, score, audit, and answer signals and stalls."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from rankmixer_dist.batch import Batch
from rankmixer_dist.checkpoint.saver import Saver
from rankmixer_dist.config import RunConfig
from rankmixer_dist.errors import Preempted, UserError
from rankmixer_dist.parallel.engine import DenseEngine
from rankmixer_dist.parallel.preemption import StopRequest
from rankmixer_dist.parallel.token_parallel import traffic_of
from rankmixer_dist.parallel.topology import Topology, broadcast_object
from rankmixer_dist.parallel.watchdog import Watchdog
from rankmixer_dist.sparse.shard import Tables
from rankmixer_dist.train.beginning import Beginning
from rankmixer_dist.train.checkpoint import describe, state_pieces
from rankmixer_dist.train.full_disk import Complaint
from rankmixer_dist.train.loop import Plan, Progress
from rankmixer_dist.train.metrics_log import MetricsLog
from rankmixer_dist.train.paths import path_gap
from rankmixer_dist.train.progress import TrainProgress
from rankmixer_dist.train.rank_counting import NotCounted
from rankmixer_dist.train.rank_figures import rank_figures
from rankmixer_dist.train.routing import Routing
from rankmixer_dist.train.row_audit import RowAudit
from rankmixer_dist.train.scoring import ScoredRows, score_split, single_figures


class RunHooks:
    """`loop.Hooks` of a run, for the length of a `with` block: it ends when all that was begun is written.

    Args:
        progress: where the run begins; what a run that died left of later steps is removed.
        validation_rows: of `checkpoint.best.split`, if the config asks for the best checkpoint.
        routing: of the model's mixtures of experts, if it has any.
        begins: what the run goes on or begins with.
    """

    def __init__(
        self,
        config: RunConfig,
        topology: Topology,
        tables: Tables,
        engine: DenseEngine,
        progress: Progress,
        plan: Plan,
        validation_rows: ScoredRows | None,
        routing: Routing | None,
        begins: Beginning,
    ) -> None:
        self._begins, self._planned_steps = begins, plan.lr.total_steps
        self._routing, self._traffic = routing, traffic_of(engine.module)
        self._newest_batch: Batch | None = None
        self._task_weights_K = torch.tensor(plan.task_weights, device=topology.device)
        self._config, self._topology, self._tables, self._engine = config, topology, tables, engine
        self._validation_rows = validation_rows
        self._no_figures = Complaint("checkpoints are saved without validation figures until it can be")
        first, run_dir, best = topology.is_first, config.run_dir, config.checkpoint.best
        self._saver = Saver(
            run_dir,
            topology,
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            is_better=None if best is None else best.is_better,
        )
        self._audit = RowAudit(run_dir, topology, resume_step=progress.step) if config.train.audit_rows else None
        self._log = MetricsLog(run_dir, resume_step=progress.step) if first else None
        self._shown = TrainProgress(total_steps=plan.total_steps, done_steps=progress.step, enabled=first)
        self._stop = StopRequest(topology)
        self._watchdog = Watchdog(topology, config.train.stall_timeout_s, run_dir / "watchdog")

    def __enter__(self) -> Self:
        self._shown.__enter__()
        self._stop.__enter__()
        self._watchdog.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Preempted):
                self._saver.finish()
            elif issubclass(kind, UserError):
                # All ranks end alike, and what was saved before is the state to go on from.
                self._saver.wait()
        finally:
            self._watchdog.__exit__(kind, error, trace)
            self._stop.__exit__(kind, error, trace)
            self._shown.__exit__(kind, error, trace)
            if self._log is not None:
                self._log.close()

    def doing(self, step: int, what: str) -> None:
        """Tells the watchdog that the loop moves on."""
        self._watchdog.beat(step, what)

    def on_step(self, batch: Batch) -> None:
        """Moves the bar, and remembers the rows if they are audited."""
        self._shown.advance()
        self._newest_batch = batch
        if self._audit is not None:
            self._audit.add(batch)

    def on_log(self, line: dict[str, Any]) -> None:
        """Writes and shows the figures of an interval."""
        line["checkpoint_wait_s"], self._saver.waited_s = self._saver.waited_s, 0.0
        line["failed_checkpoints"], self._saver.failed = self._saver.failed, 0
        line |= self._exchange_figures(line["steps"]) | self._routing_figures()
        ranks = rank_figures(line, self._topology)
        line |= {"ranks": ranks} if ranks else {}
        self._forget_exchanges()
        if self._log is not None:
            self._log.write(line)
        self._shown.show(line)

    def on_checkpoint(self, progress: Progress) -> None:
        """Scores the validation split if there is one, and begins to save."""
        metrics = self._validate(progress.step)
        if self._audit is not None:
            self._audit.write(progress.step)
        about = describe(
            self._config,
            progress,
            self._engine,
            self._topology,
            metrics,
            data=self._begins.data,
            planned_steps=self._planned_steps,
            trained_before=self._begins.trained_before,
        )
        self._saver.save(about, state_pieces(self._tables, self._engine, self._topology, self._routing))

    def stops(self) -> bool:
        """Whether a signal asked the run to stop."""
        return self._stop.agreed()

    def _routing_figures(self) -> dict[str, Any]:
        if self._routing is None or self._newest_batch is None:
            return {}
        batch = self._newest_batch.to(self._topology.device)
        gap = path_gap(self._tables, self._engine.module, batch, self._task_weights_K)
        return {"routing": {**self._routing.figures(), "path_gap": gap}}

    def _exchange_figures(self, steps: int) -> dict[str, Any]:
        """What a step exchanges between the owners of tokens, on this rank."""
        traffic = self._traffic
        if traffic is None:
            return {}
        return {
            "exchange": {
                "seconds": traffic.seconds() / steps,
                "bytes_forward": traffic.bytes_forward / steps,
                "bytes_backward": traffic.bytes_backward / steps,
                "count": (traffic.exchanges_forward + traffic.exchanges_backward) / steps,
            }
        }

    def _forget_exchanges(self) -> None:
        """Those of scoring are not part of a step."""
        if self._traffic is not None:
            self._traffic.reset()

    def _validate(self, step: int) -> Mapping[str, float]:
        if self._validation_rows is None:
            return {}
        tasks = tuple(self._config.features.tasks)
        # evaluate.py has a folder of its own: it may score while the run goes on.
        scratch = self._config.run_dir / "validated_rows.partial"

        def counted(stage: str, done: int, parts: int) -> None:
            if done == 0:  # ranks may have more parts or fewer, and have to make the same beats
                self.doing(step, f"counting the validation split: {stage}")

        try:
            result = score_split(
                self._tables,
                self._engine.module,
                self._validation_rows,
                tasks=tasks,
                predictions=None,
                scratch=scratch,
                topology=self._topology,
                on_batch=lambda rows: self.doing(step, "scoring the validation split"),
                on_count=counted,
            )
        except NotCounted as error:
            if self._topology.is_first:
                self._no_figures.tell(scratch, error)
            return {}
        finally:
            self._forget_exchanges()
            self.doing(step, "saving a checkpoint")
        return broadcast_object(None if result is None else single_figures(result))
