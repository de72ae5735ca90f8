"""What every metric state can do beside its own update, merge and compute: go to a file and come back."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankmixer_dist.errors import UserError, one_line

KIND = "kind"


class ArrayState(ABC):
    """A state that its arrays say in full. Saved as one .npz file without pickle, uncompressed, with checksums."""

    @abstractmethod
    def to_arrays(self) -> dict[str, NDArray]:
        """The state as named arrays."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """The state that `to_arrays` was called on.

        Raises:
            ValueError: arrays of something else.
        """

    def save(self, path: Path) -> None:
        """Write the state to a file, which is complete or absent: written aside, then renamed.

        Raises:
            OSError: the file cannot be written.
        """
        aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with aside.open("wb") as file:
                np.savez(file, allow_pickle=False, **{KIND: np.array(type(self).__name__)}, **self.to_arrays())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The state that was saved to the file.

        Raises:
            UserError: no such file, a damaged one, or one with another kind of state.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            kind = str(arrays.pop(KIND, "no metric"))
            if kind != cls.__name__:
                raise UserError(f"{path} holds {kind}, not {cls.__name__}: name the file of such a state")
            return cls.from_arrays(arrays)
        except UserError:
            raise
        # A damaged archive makes numpy and zipfile raise nearly anything.
        except Exception as error:
            raise UserError(f"cannot read {path} as {cls.__name__}, save it again: {one_line(error)}") from error
