"""A seeded short-video feed whose true probabilities are known.

A row is a video shown to a user. Its logits add up what a model can learn from the features, most of it only across
semantic groups:

- main effects: how generous the user's segment is, how good the author is, duration, age of the video;
- user x video: the taste of the segment for the topic, and the topics that the user likes;
- history x video: how many of the watched videos share the topic, loyalty to an author;
- context x video: long videos do well in the evening, badly in the morning.

Small effects of single users and videos, and a taste that drifts day by day, are what a model cannot learn in full.
"""

from dataclasses import dataclass

import numpy as np

TOPICS = ("music", "food", "sport", "game", "pets", "news", "travel", "comedy")
SEGMENTS = ("u18", "18-23", "24-30", "31-40", "41-49", "50+")
SUBTOPICS, HISTORY = 3, 20
FIRST_DAY_MS = 1_767_225_600_000  # 2026-01-01T00:00Z
DAY_MS, HOUR_MS = 86_400_000, 3_600_000


@dataclass(frozen=True)
class World:
    """What stays, or drifts day by day: U users, V videos, A authors, T topics, S segments, D days."""

    segment_U: np.ndarray
    user_weight_U: np.ndarray
    generosity_U: np.ndarray
    segment_taste_DST: np.ndarray
    own_taste_UT: np.ndarray
    liked_UT: np.ndarray
    activity_U: np.ndarray
    topic_V: np.ndarray
    subtopic_V: np.ndarray
    author_V: np.ndarray
    quality_V: np.ndarray
    log_duration_V: np.ndarray
    born_ms_V: np.ndarray
    video_weight_V: np.ndarray
    topic_appeal_DT: np.ndarray


@dataclass(frozen=True)
class Day:
    """The rows of a day in time order: R rows, H = 20 watched videos, -1 before the first."""

    timestamp_R: np.ndarray
    user_R: np.ndarray
    video_R: np.ndarray
    watched_RH: np.ndarray
    outcomes: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]


def make_world(*, seed: int, users: int, videos: int, days: int) -> World:
    """Draws the users, videos and their drift over `days`."""
    rng = np.random.default_rng([seed, 0])
    topics = len(TOPICS)
    segment = rng.choice(len(SEGMENTS), users, p=[0.14, 0.22, 0.24, 0.2, 0.12, 0.08])
    segment_taste_ST = np.stack([rng.permutation(np.linspace(-1, 1, topics)) for _ in SEGMENTS])
    drift_DST = rng.normal(0, 0.05, (days, len(SEGMENTS), topics)).cumsum(axis=0)
    # Half of the users like two topics, the others one: visible as their liked tags.
    rank_UT = rng.random((users, topics)).argsort(axis=1)
    liked_UT = rank_UT < rng.integers(1, 3, users)[:, None]
    authors = max(2, videos // 8)
    home_A = rng.integers(topics, size=authors)
    author_V = rng.integers(authors, size=videos)
    topic_V = np.where(rng.random(videos) < 0.95, home_A[author_V], rng.integers(topics, size=videos))
    weight_U = rng.permutation(np.arange(1, users + 1) ** -0.5)
    quality_A = rng.normal(0, 0.5, authors)
    return World(
        segment_U=segment,
        user_weight_U=weight_U / weight_U.sum(),
        generosity_U=rng.normal(0, 0.12, users) + 0.5 * np.linspace(-1, 1, len(SEGMENTS))[segment],
        segment_taste_DST=segment_taste_ST + drift_DST,
        own_taste_UT=1.5 * liked_UT + rng.normal(0, 0.1, (users, topics)),
        liked_UT=liked_UT,
        activity_U=weight_U / weight_U.mean() * np.exp(rng.normal(0, 0.2, users)),
        topic_V=topic_V,
        subtopic_V=rng.integers(SUBTOPICS, size=videos),
        author_V=author_V,
        quality_V=quality_A[author_V] + rng.normal(0, 0.12, videos),
        log_duration_V=np.clip(rng.normal(3.4, 0.8, videos) + 0.3 * (topic_V % 3 - 1), np.log(4), np.log(600)),
        # A third of the videos are published while the log runs.
        born_ms_V=FIRST_DAY_MS + (rng.uniform(-14, days * 0.5, videos) * DAY_MS).astype(np.int64),
        video_weight_V=rng.permutation(np.arange(1, videos + 1) ** -0.8),
        topic_appeal_DT=rng.normal(0, 0.4, topics) + rng.normal(0, 0.15, (days, topics)).cumsum(axis=0),
    )


def play_day(world: World, *, seed: int, day: int, rows: int, watched_UH: np.ndarray) -> Day:
    """The exposures of one day and what came of them; brings `watched_UH` (newest last, -1 empty) forward in place."""
    rng = np.random.default_rng([seed, 1, day])
    timestamp_R, user_R = _arrivals(rng, world, day, rows)
    video_R = _recommend(rng, world, day, timestamp_R, user_R)
    logits_R3 = _logits_without_history(world, day, timestamp_R, user_R, video_R)
    chance_R3 = rng.random((rows, 3))
    watched_RH = np.empty((rows, HISTORY), dtype=np.int32)
    p_R3, outcome_R3 = np.empty((rows, 3)), np.empty((rows, 3), dtype=bool)
    for step in _nth_rows(user_R):
        user, video = user_R[step], video_R[step]
        history = watched_UH[user]
        watched_RH[step] = history
        p_R3[step] = _probabilities(logits_R3[step] + _history_logits(world, history, video))
        outcome_R3[step] = _draw(p_R3[step], chance_R3[step])
        kept = ~outcome_R3[step, 1]
        watched_UH[user[kept]] = np.concatenate([history[kept, 1:], video[kept, None]], axis=1)
    names = ("finish", "skip", "like")
    return Day(
        timestamp_R=timestamp_R,
        user_R=user_R,
        video_R=video_R,
        watched_RH=watched_RH,
        outcomes={name: outcome_R3[:, i].astype(np.int8) for i, name in enumerate(names)},
        truth={f"p_{name}": p_R3[:, i].astype(np.float32) for i, name in enumerate(names)},
    )


def _taste(world: World, day: int, user_R: np.ndarray) -> np.ndarray:
    """[R, T]: what the user's segment and the user likes, on that day."""
    return world.segment_taste_DST[day, world.segment_U[user_R]] + world.own_taste_UT[user_R]


def _arrivals(rng: np.random.Generator, world: World, day: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Strictly ascending times with a noon and an evening peak, and who comes; no two rows share a millisecond."""
    hours = np.arange(24)
    weight = 0.4 + np.exp(-(((hours - 12.5) / 2.5) ** 2)) + 1.6 * np.exp(-(((hours - 20.5) / 3.0) ** 2))
    hour_R = rng.choice(24, rows, p=weight / weight.sum())
    offset_R = np.sort(((hour_R + rng.random(rows)) * (DAY_MS - rows) / 24).astype(np.int64)) + np.arange(rows)
    user_R = np.searchsorted(world.user_weight_U.cumsum(), rng.random(rows)).clip(max=len(world.user_weight_U) - 1)
    return FIRST_DAY_MS + day * DAY_MS + offset_R, user_R


def _recommend(
    rng: np.random.Generator, world: World, day: int, timestamp_R: np.ndarray, user_R: np.ndarray
) -> np.ndarray:
    """A video for each row: a topic by its appeal and the user's taste, then a published video of it by popularity."""
    weight_RT = np.exp(world.topic_appeal_DT[day] + 0.4 * _taste(world, day, user_R))
    share_RT = weight_RT.cumsum(axis=1) / weight_RT.sum(axis=1, keepdims=True)
    topic_R = (rng.random(len(user_R))[:, None] > share_RT).sum(axis=1)
    topic_R = topic_R.clip(max=len(TOPICS) - 1)
    chance_R = rng.random(len(user_R))
    video_R = np.empty(len(user_R), dtype=np.int64)
    age_V = (FIRST_DAY_MS + day * DAY_MS - world.born_ms_V) / DAY_MS
    for topic in range(len(TOPICS)):
        # Published before this day began; the oldest video of a topic always counts, so that none is empty.
        videos = np.flatnonzero(world.topic_V == topic)
        videos = videos if len(videos) else np.arange(len(age_V))
        videos = videos[(age_V[videos] > 0) | (age_V[videos] == age_V[videos].max())]
        weight = world.video_weight_V[videos] * np.exp(-np.maximum(age_V[videos], 0) / 14)
        chosen = np.searchsorted(weight.cumsum() / weight.sum(), chance_R[topic_R == topic])
        video_R[topic_R == topic] = videos[chosen.clip(max=len(videos) - 1)]
    return video_R


def _logits_without_history(
    world: World, day: int, timestamp_R: np.ndarray, user_R: np.ndarray, video_R: np.ndarray
) -> np.ndarray:
    """[R, 3]: finish and like given no skip, and skip; columns finish, skip, like."""
    taste_R = _taste(world, day, user_R)[np.arange(len(user_R)), world.topic_V[video_R]]
    length_R = (world.log_duration_V[video_R] - 3.4) / 0.85
    hour_R = timestamp_R % DAY_MS / HOUR_MS
    evening_R = np.cos(2 * np.pi * (hour_R - 21) / 24)
    fresh_R = np.exp(-(timestamp_R - world.born_ms_V[video_R]) / (3 * DAY_MS))
    generosity_R, quality_R = world.generosity_U[user_R], world.quality_V[video_R]
    finish = 0.8 * generosity_R + quality_R + taste_R - 0.3 * length_R + 0.5 * evening_R * length_R
    skip = -0.6 * generosity_R - 0.8 * quality_R - taste_R - 0.5 * evening_R * length_R
    like = generosity_R + 0.7 * quality_R + taste_R + 0.4 * fresh_R
    return np.stack([finish - 0.95, skip - 0.35 - 0.3 * fresh_R, like - 4.1], axis=1)


def _history_logits(world: World, history_NH: np.ndarray, video_N: np.ndarray) -> np.ndarray:
    """[N, 3] from the videos watched so far: shared topic, boredom with the latest three, loyalty to the author."""
    present_NH = history_NH >= 0
    count_N = present_NH.sum(axis=1)
    same_NH = present_NH & (world.topic_V[history_NH] == world.topic_V[video_N][:, None])
    share_N = np.where(count_N > 0, same_NH.sum(axis=1) / np.maximum(count_N, 1), 0.2)
    interest_N = 1.6 * np.minimum(share_N - 0.2, 0.5)
    loyal_N = (present_NH & (world.author_V[history_NH] == world.author_V[video_N][:, None])).any(axis=1)
    finish = interest_N + 0.3 * loyal_N
    skip = -interest_N - 0.3 * loyal_N
    like = 0.8 * interest_N + 0.6 * loyal_N
    return np.stack([finish, skip, like], axis=1)


def _probabilities(logits_N3: np.ndarray) -> np.ndarray:
    """Marginal p_finish, p_skip, p_like [N, 3]: a skipped video is neither finished nor liked."""
    p = 1 / (1 + np.exp(-logits_N3))
    watched = 1 - p[:, 1]
    return np.stack([p[:, 0] * watched, p[:, 1], p[:, 2] * watched], axis=1)


def _draw(p_N3: np.ndarray, chance_N3: np.ndarray) -> np.ndarray:
    """Outcomes with exactly the marginals `p_N3`."""
    skip = chance_N3[:, 1] < p_N3[:, 1]
    watched = 1 - p_N3[:, 1]
    finish = ~skip & (chance_N3[:, 0] * watched < p_N3[:, 0])
    like = ~skip & (chance_N3[:, 2] * watched < p_N3[:, 2])
    return np.stack([finish, skip, like], axis=1)


def _nth_rows(user_R: np.ndarray) -> list[np.ndarray]:
    """The rows that are their user's first of the day, then the second ones, and so on: no user twice in one."""
    order = np.argsort(user_R, kind="stable")
    _, first, counts = np.unique(user_R[order], return_index=True, return_counts=True)
    nth_R = np.empty(len(user_R), dtype=np.int64)
    nth_R[order] = np.arange(len(user_R)) - np.repeat(first, counts)
    by_nth = np.argsort(nth_R, kind="stable")
    return np.split(by_nth, np.bincount(nth_R).cumsum()[:-1])
