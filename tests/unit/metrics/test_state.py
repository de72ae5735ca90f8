"""Saving and loading of states that their arrays say in full."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankmixer_dist.errors import UserError
from rankmixer_dist.metrics import AUC, PRAUC, Calibration, TaskMetrics, UserAUC, UserAUCTotals
from rankmixer_dist.metrics.user_auc import exact_user_aucs

ROWS = (np.array([0.5, 0.25, 0.75, 0.5]), np.array([True, False, True, False]))
USERS = np.array([-3, -3, 8, 8])


def filled(make: type) -> Any:
    state = make()
    if make is UserAUCTotals:
        state.update(exact_user_aucs(*ROWS, USERS))
    else:
        state.update(*ROWS, *((USERS,) if make in (UserAUC, TaskMetrics) else ()))
    return state


@pytest.mark.parametrize("make", [AUC, PRAUC, Calibration, TaskMetrics, UserAUC, UserAUCTotals])
def test_what_is_saved_is_what_is_loaded(make: type, tmp_path: Path) -> None:
    state = filled(make)
    state.save(tmp_path / "state")
    loaded = make.load(tmp_path / "state")
    assert loaded.compute() == state.compute()
    for name, array in state.to_arrays().items():
        assert array.dtype == loaded.to_arrays()[name].dtype and array.tobytes() == loaded.to_arrays()[name].tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    # Saved again, into the place of the first.
    loaded.merge(state)
    loaded.save(tmp_path / "state")
    assert make.load(tmp_path / "state").compute() == loaded.compute()


@pytest.mark.parametrize("make", [AUC, Calibration, TaskMetrics, UserAUC, UserAUCTotals])
def test_an_empty_state_can_be_saved(make: type, tmp_path: Path) -> None:
    make().save(tmp_path / "state")
    loaded = make.load(tmp_path / "state")
    loaded.merge(filled(make))
    assert loaded.compute() == filled(make).compute()


def test_another_kind_is_refused(tmp_path: Path) -> None:
    filled(AUC).save(tmp_path / "state")
    with pytest.raises(UserError, match=r"state holds AUC, not PRAUC: name the file of such a state$"):
        PRAUC.load(tmp_path / "state")
    np.savez(tmp_path / "other.npz", scores=ROWS[0])
    with pytest.raises(UserError, match=r"other.npz holds no metric, not AUC: "):
        AUC.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", ROWS[0])
    with pytest.raises(UserError, match="save it again"):
        AUC.load(tmp_path / "array.npy")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", kind=np.array("AUC"), scores=np.array([print]), labels=ROWS[1])
    with pytest.raises(UserError, match="save it again"):
        AUC.load(tmp_path / "state.npz")


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    filled(UserAUC).save(path)
    content = path.read_bytes()
    whole = {name: array.tobytes() for name, array in filled(UserAUC).to_arrays().items()}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(content)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        else:
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            loaded = UserAUC.load(path)
        except UserError:
            refused += 1
        else:
            # A bit that says nothing about the content, such as a date.
            assert {name: array.tobytes() for name, array in loaded.to_arrays().items()} == whole
    assert refused > 250


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    filled(AUC).save(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", fail)
    with pytest.raises(OSError, match="No space left"):
        filled(AUC).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
