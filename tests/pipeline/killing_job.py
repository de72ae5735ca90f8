"""Ray jobs whose workers die."""

import functools
import os
import signal
from contextlib import suppress
from pathlib import Path

from data_pipeline.job import RayJob


class KillingJob(RayJob):
    """Each kind of call kills its worker once, at the end of its work, and leaves a marker of its name."""

    def __init__(self, markers: Path, *, rows_per_task: int) -> None:
        super().__init__(rows_per_task=rows_per_task)
        self._markers = markers

    def map(self, function, calls, *, held):
        marker = str(self._markers / function.__name__)

        @functools.wraps(function)
        def killing(*call):
            result = function(*call)
            with suppress(FileExistsError):
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return super().map(killing, calls, held=held)
