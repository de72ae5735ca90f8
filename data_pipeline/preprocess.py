"""From raw logs to prepared data: read and prepare, sort by time, drop duplicates, cut into shards."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline import advice
from data_pipeline.checks import check_columns, check_names, standing_manifest
from data_pipeline.groups import Grouping, user_side
from data_pipeline.hangup import signals_unwind
from data_pipeline.job import Handle, Job, open_job
from data_pipeline.manifest import (
    FORMAT_VERSION,
    GROUPED_FORMAT_VERSION,
    Manifest,
    prepared_columns,
    prepared_meaning,
    read_manifest,
    schema_hash,
)
from data_pipeline.own_folder import OwnFolder, sweep
from data_pipeline.progress import Reporter
from data_pipeline.provenance import (
    all_times,
    changed_sides,
    grouped_rows,
    ids_a_row,
    key_ranges,
    made_from,
    notes_of,
    raw_types,
)
from data_pipeline.set_aside import SET_ASIDE, SetAside
from data_pipeline.shards import Moments, ShardPlan, ShardResult, ShardTarget, plan_shards, write_shard
from data_pipeline.sources import Source, Unit, open_source
from data_pipeline.sources.synthetic import write_synthetic_log
from data_pipeline.stages import OrderReport, ReadReport, Recipe, block_range, order_rows, read_units
from data_pipeline.transforms import DETAIL, DUPLICATE, REASON
from rankmixer_dist.config import RunConfig, SyntheticSource
from rankmixer_dist.errors import UserError
from rankmixer_dist.schema import NumericFeature


def preprocess(config: RunConfig, *, progress: bool = True, job: Job | None = None) -> Manifest:
    """Prepares `config.data.prepared`, complete or not at all, and returns its manifest.

    The shards' bytes depend on the raw files and the config alone, not on the job or its parallelism. A folder that
    was prepared from the same is left alone. A synthetic source is written first.

    Args:
        progress: Shows the stages on stderr; warnings are shown in any case.
        job: Where the stages run; `config.data.job` by default.

    Raises:
        UserError: a column, file or folder is missing or does not fit, a feature would see the future, the prepared
            folder holds something else, or, where the config says to fail on them, a file cannot be read or a row
            cannot be prepared.
    """
    reporter = Reporter(shown=progress)
    check_names(config)
    if isinstance(config.source, SyntheticSource) and write_synthetic_log(config.source):
        reporter.say(f"synthetic log: {config.source.rows:,} rows written to {config.source.path}")
    schema = config.features
    needed = [*schema.raw_columns().values(), *schema.event_columns(), *schema.label_columns().values()]
    if config.data.group is not None:
        needed.append(config.data.group.by)
    source = open_source(config.source, needed)
    check_columns(schema, source, config.data.group)
    prepared_from = made_from(config, source)
    folder = config.data.prepared
    standing = standing_manifest(folder, prepared_from, schema, verify=config.data.verify_checksums)
    if standing is not None:
        reporter.say(f"{folder}: up to date")
        return standing
    units = source.units()
    broken = [unit.unreadable for unit in units if unit.unreadable]
    if broken and config.data.on_unreadable_file == "fail":
        files = len({unit.file_index for unit in units})
        raise UserError(advice.unreadable(broken, lost=len(broken), of=files, what="files"))
    prefix = f"{folder.name}.partial-"
    for line in sweep(folder.parent, prefix):
        reporter.say(line)
    with signals_unwind(), OwnFolder(folder.parent, prefix) as aside:
        if job is None:
            with reporter.stage(f"start the {config.data.job} job", None):
                job = open_job(config.data.job)
        manifest = _Preparation(config, source, job, aside.path, reporter).run(units, prepared_from)
        manifest.write(aside.path)
        try:
            aside.publish(folder)
        except OSError as error:
            raise UserError(f"{folder}: appeared while its data was being prepared ({error})") from error
    return read_manifest(folder, config.features)


class _Preparation:
    """One run of the pipeline into an empty folder."""

    def __init__(self, config: RunConfig, source: Source, job: Job, folder: Path, reporter: Reporter) -> None:
        self._config, self._source, self._job = config, source, job
        self._folder, self._reporter = folder, reporter
        ranges = {name: split.to_ms() for name, split in config.data.splits.items()}
        self._recipe = Recipe(source, config.features, ranges, _grouping(config))
        self._shared_recipe = job.share(self._recipe)

    def run(self, units: Sequence[Unit], prepared_from: dict[str, Any]) -> Manifest:
        """All stages, one after the other."""
        with SetAside(self._folder) as set_aside:
            tables, reports = self._read(units, set_aside)
            partitions, orders = self._order(tables, set_aside)
        del tables
        _require_rows(orders, reports)
        splits = self._write(partitions, orders)
        counts = sum((report.set_aside for report in reports), Counter())
        counts[DUPLICATE] = sum(order.duplicates for order in orders)
        schema, has_truth = self._config.features, self._recipe.has_truth
        statistics_of = splits[self._config.data.statistics_of]
        return Manifest(
            format_version=FORMAT_VERSION if self._recipe.grouping is None else GROUPED_FORMAT_VERSION,
            source=self._source.name,
            schema_hash=schema_hash(schema),
            meaning=prepared_meaning(schema),
            columns={field.name: str(field.type) for field in prepared_columns(schema, has_truth=has_truth)},
            row_group_rows=self._config.data.row_group_rows,
            splits={name: [result.shard for result in results] for name, results in splits.items()},
            numerics={
                name: reduce(Moments.merge, (result.moments[name] for result in statistics_of)).statistics()
                for name in schema.of_kind(NumericFeature)
            },
            ids_per_row=ids_a_row(statistics_of, [result.ids for result in statistics_of]),
            ids_read_per_row=ids_a_row(statistics_of, [result.read for result in statistics_of]),
            key_ranges=key_ranges(schema, reports, splits.values()),
            raw_rows=sum(report.raw_rows for report in reports),
            set_aside={reason: counts[reason] for reason in sorted(counts) if counts[reason]},
            notes=notes_of(reports, self._source) + changed_sides(splits.values()),
            group=grouped_rows(self._config, splits),
            has_truth=has_truth,
            raw_types=raw_types(self._source),
            prepared_from=prepared_from,
        )

    def _read(self, units: Sequence[Unit], set_aside: SetAside) -> tuple[list[Handle], list[ReadReport]]:
        """Held tables of prepared rows, empty ones left out, and what each reading task found."""
        side_tables = self._job.share(self._source.side_tables())
        calls = [(task, self._shared_recipe, side_tables) for task in self._job.tasks(units)]
        found: dict[int, tuple[tuple[Handle, ...], ReadReport]] = {}
        with self._reporter.stage("read", len(calls), "tasks") as advance:
            for index, held, report in self._job.map(read_units, calls, held=2):
                found[index] = (held, report)
                advance(report.raw_rows)
        in_order = [found[index] for index in range(len(calls))]
        reports = [report for _, report in in_order]
        self._judge(reports)
        for (_, aside), report in in_order:
            for table in self._job.fetch(aside) if report.set_aside else ():
                set_aside.add(table)
        return [rows for (rows, _), report in in_order if report.good_rows], reports

    def _judge(self, reports: Sequence[ReadReport]) -> None:
        """Fails where the config says so; otherwise warns."""
        unreadable = [text for report in reports for text in report.unreadable]
        if unreadable and self._config.data.on_unreadable_file == "fail":
            lost = sum(report.unreadable_rows for report in reports)
            rows = lost + sum(report.raw_rows for report in reports)
            raise UserError(advice.unreadable(unreadable, lost=lost, of=rows, what="rows"))
        for text in unreadable:
            self._reporter.warn(f"skipped: {text}")
        bad = advice.bad_rows(reports, self._config.features)
        if bad is not None and self._config.data.on_bad_row == "fail":
            raise UserError(bad)
        if bad is not None:
            count, rows = advice.count_bad_rows(reports)
            self._reporter.warn(f"{count:,} of {rows:,} rows are bad and set aside; see {SET_ASIDE}/")
        far = all_times(reports).far()
        if not any(report.good_rows for report in reports):
            raise UserError(f"no row is left for any split; {far or bad or all_times(reports).span()}")
        if far is not None:
            self._reporter.warn(far)

    def _order(self, tables: list[Handle], set_aside: SetAside) -> tuple[list[Handle], list[OrderReport]]:
        """Ordered partitions: each row stands in `Recipe.order()` above those of the partitions before."""
        with self._reporter.stage("sort", None):
            order = self._recipe.order()
            blocks = self._job.sort(tables, order)
            ends = {index: ends for index, _, ends in self._job.map(block_range, [(b, order) for b in blocks], held=0)}
            groups = group_touching([ends[index] for index in range(len(blocks))])
            calls = [(self._shared_recipe, *(blocks[index] for index in group)) for group in groups]
            found = {index: (held, report) for index, held, report in self._job.map(order_rows, calls, held=2)}
        in_order = [found[index] for index in range(len(calls))]
        for (_, duplicates), report in in_order:
            if report.duplicates:
                set_aside.add(_explained(self._job.fetch(duplicates), DUPLICATE))
        return [rows for (rows, _), _ in in_order], [report for _, report in in_order]

    def _write(self, partitions: list[Handle], orders: Sequence[OrderReport]) -> dict[str, list[ShardResult]]:
        """Writes the shards; split -> its shards in order."""
        data = self._config.data
        plans = plan_shards([order.split_rows for order in orders], data.shard_rows)
        found: dict[int, ShardResult] = {}
        with self._reporter.stage("write", len(plans), "shards") as advance:
            for index, _, result in self._job.map(write_shard, [self._call(p, partitions) for p in plans], held=0):
                found[index] = result
                advance(result.shard.rows)
        splits: dict[str, list[ShardResult]] = {name: [] for name in data.splits}
        for index, plan in enumerate(plans):
            splits[plan.split].append(found[index])
        return splits

    def _call(self, plan: ShardPlan, partitions: Sequence[Handle]) -> tuple[Any, ...]:
        config, has_truth = self._config, self._recipe.has_truth
        side = None if self._recipe.grouping is None else self._recipe.grouping.side
        target = ShardTarget(self._folder, config.features, config.data.row_group_rows, has_truth, side)
        return (plan, target, *(partitions[piece.partition] for piece in plan.slices))


def group_touching(ranges: Sequence[tuple[Any, Any] | None]) -> list[list[int]]:
    """Indices of sorted blocks, those together that share a sort key; empty blocks (None) are left out.

    Ray Data may cut one sorted range into several blocks between rows of equal key.
    """
    groups: list[list[int]] = []
    last = None
    for (first, end), index in sorted((ends, index) for index, ends in enumerate(ranges) if ends is not None):
        if last is not None and first <= last:
            groups[-1].append(index)
        else:
            groups.append([index])
        last = end if last is None else max(last, end)
    return groups


def _grouping(config: RunConfig) -> Grouping | None:
    group = config.data.group
    return None if group is None else Grouping(group.by, group.window_ms, user_side(config.features))


def _require_rows(orders: Sequence[OrderReport], reports: Sequence[ReadReport]) -> None:
    rows = {
        split: sum(order.split_rows[split][1] - order.split_rows[split][0] for order in orders)
        for split in orders[0].split_rows
    }
    for split in rows:
        if not rows[split]:
            found = all_times(reports)
            others = ", ".join(f"{other} holds {count:,}" for other, count in rows.items() if count) or "nor any other"
            why = found.far() or found.span()
            raise UserError(f"data.splits.{split} holds no row; {others}; {why}")


def _explained(rows: pa.Table, reason: str) -> pa.Table:
    for name, text in ((REASON, reason), (DETAIL, "")):
        rows = rows.append_column(name, pa.array([text] * rows.num_rows, type=pa.string()))
    return rows
