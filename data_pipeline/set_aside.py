"""Rows that did not make it into the prepared data, one Parquet file a reason."""

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.transforms import REASON
from rankmixer_dist.errors import disk_errors_told

SET_ASIDE = "set_aside"
_ROW_GROUP_ROWS = 10_000


class SetAside:
    """Writes `set_aside/<reason>.parquet` below a folder, in the order in which tables are added.

    Row groups have a fixed size whatever the sizes of the tables, so that the bytes depend on the rows alone. All
    methods raise a `UserError` where the files cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / SET_ASIDE
        self._pending: dict[str, pa.Table] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def add(self, table: pa.Table) -> None:
        """Adds rows, each to the file of its reason."""
        for reason in pc.unique(table[REASON]).to_pylist():
            rows = table.filter(pc.equal(table[REASON], reason))
            pending = self._pending.get(reason)
            self._pending[reason] = rows if pending is None else pa.concat_tables([pending, rows])
            self._flush(reason, keep=_ROW_GROUP_ROWS - 1)

    def __enter__(self) -> "SetAside":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reason in list(self._pending):
            if kind is None:
                self._flush(reason, keep=0)
        with disk_errors_told(self._folder):
            for writer in self._writers.values():
                writer.close()

    def _flush(self, reason: str, *, keep: int) -> None:
        """Writes whole row groups until at most `keep` rows are pending."""
        while self._pending[reason].num_rows > keep:
            pending = self._pending[reason]
            with disk_errors_told(self._folder):
                if reason not in self._writers:
                    self._folder.mkdir(exist_ok=True)
                    self._writers[reason] = pq.ParquetWriter(self._folder / f"{reason}.parquet", pending.schema)
                self._writers[reason].write_table(pending.slice(0, _ROW_GROUP_ROWS).combine_chunks())
            self._pending[reason] = pending.slice(_ROW_GROUP_ROWS)
