"""Scored rows, and AUC and UAUC of them as others compute it: scikit-learn, loops over users, pandas."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

LARGEST_USERS = 100


@dataclass(frozen=True)
class ScoredRows:
    """Columns [rows]: float32 probabilities, labels of which a tenth are positive, users with Zipf activity."""

    scores: NDArray[np.float32]
    labels: NDArray[np.bool_]
    user_ids: NDArray[np.int64]

    @classmethod
    def random(cls, seed: int | Sequence[int], rows: int, users: int) -> Self:
        """Rows of at most so many users."""
        random = np.random.default_rng(seed)
        user_ids = (random.zipf(1.2, rows) - 1) % users
        labels = random.random(rows) < 0.1
        logits = random.standard_normal(rows, dtype=np.float32) + labels
        return cls((1 / (1 + np.exp(-logits))).astype(np.float32, copy=False), labels, user_ids)


def sklearn_auc(rows: ScoredRows) -> float:
    """scikit-learn's AUC."""
    return float(roc_auc_score(rows.labels, rows.scores))


def pandas_user_auc(rows: ScoredRows) -> float:
    """UAUC by Mann-Whitney from pandas' ranks inside each group; no loop over users."""
    frame = pd.DataFrame({"user": rows.user_ids, "score": rows.scores, "positive": rows.labels})
    frame["rank"] = frame.groupby("user")["score"].rank()
    frame["positive_rank"] = frame["rank"].where(frame["positive"], 0.0)
    users = frame.groupby("user").agg(
        rows=("positive", "size"), positives=("positive", "sum"), ranks=("positive_rank", "sum")
    )
    users = users[(users["positives"] > 0) & (users["positives"] < users["rows"])]
    positives, negatives = users["positives"], users["rows"] - users["positives"]
    aucs = (users["ranks"] - positives * (positives + 1) / 2) / (positives * negatives)
    return float((aucs * users["rows"]).sum() / users["rows"].sum())


def rank_auc(labels: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """AUC of one user by Mann-Whitney from midranks, in a few numpy calls."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    positives = int(labels.sum())
    won = midranks[place[labels]].sum() - positives * (positives + 1) / 2
    return float(won / (positives * (len(labels) - positives)))


def loop_seconds(rows: ScoredRows, auc_of: Callable[[NDArray, NDArray], float], sample: int) -> float:
    """CPU seconds of a loop that calls `auc_of(labels, scores)` for each user with both classes.

    Grouping the rows is timed in full, and so are the largest users, on which much of the time goes; of the rest a
    random sample is timed and scaled up.
    """
    start = time.process_time()
    order = np.argsort(rows.user_ids, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(rows.user_ids[order])) + 1)
    pieces = [piece for piece in pieces if 0 < rows.labels[piece].sum() < len(piece)]
    seconds = time.process_time() - start

    pieces.sort(key=len, reverse=True)
    largest, rest = pieces[:LARGEST_USERS], pieces[LARGEST_USERS:]
    sampled = np.random.default_rng(0).permutation(len(rest))[:sample]
    for chosen, scale in ((largest, 1.0), ([rest[i] for i in sampled], len(rest) / max(1, len(sampled)))):
        start = time.process_time()
        for piece in chosen:
            auc_of(rows.labels[piece], rows.scores[piece])
        seconds += (time.process_time() - start) * scale
    return seconds
