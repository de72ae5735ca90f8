"""Exact AUC and UAUC against scikit-learn and a loop over users."""

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.figure import Figure, interleaved
from rankmixer_dist.config import RunConfig
from rankmixer_dist.metrics import AUC, UserAUC

ROWS, USERS = 400_000, 20_000


def measure(config: RunConfig) -> list[Figure]:
    """400,000 rows of 20,000 users with Zipf activity."""
    random = np.random.default_rng(config.seed)
    users = (random.zipf(1.2, ROWS) - 1) % USERS
    labels = random.random(ROWS) < 0.1
    scores = (random.normal(size=ROWS) + labels).astype(np.float32)
    scores = 1 / (1 + np.exp(-scores))
    found: dict[str, float] = {}

    def auc() -> None:
        state = AUC()
        state.update(scores, labels)
        found["auc"] = state.compute().auc

    def sklearn_auc() -> None:
        found["sklearn auc"] = float(roc_auc_score(labels, scores))

    def user_auc() -> None:
        state = UserAUC()
        state.update(scores, labels, users)
        found["uauc"] = state.compute().uauc

    def looped_user_auc() -> None:
        order = np.argsort(users, kind="stable")
        pieces = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
        each = [(len(p), roc_auc_score(labels[p], scores[p])) for p in pieces if 0 < labels[p].sum() < len(p)]
        found["looped uauc"] = sum(n * value for n, value in each) / sum(n for n, _ in each)

    seconds = interleaved({"auc": auc, "sklearn": sklearn_auc, "uauc": user_auc})
    seconds |= interleaved({"loop": looped_user_auc}, repeats=1)
    assert abs(found["auc"] - found["sklearn auc"]) < 1e-12, found
    assert abs(found["uauc"] - found["looped uauc"]) < 1e-12, found
    return [
        Figure("AUC with interval", seconds["auc"], "s", seconds["sklearn"], "sklearn.metrics.roc_auc_score"),
        Figure("UAUC", seconds["uauc"], "s", seconds["loop"], "roc_auc_score in a loop over users"),
    ]
