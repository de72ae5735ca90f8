"""The page of a streaming evaluation says how each window stands, and that means are over windows."""

from html.parser import HTMLParser

from rankmixer_dist.metrics import TaskMetrics
from rankmixer_dist.report.stream_page import StreamView, WindowView, render_stream

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000


def window(day, **changed):
    metrics = TaskMetrics()
    metrics.update([0.1, 0.4 + day / 10, 0.5, 0.9], [0, 1, 0, 1], [1, 1, 2, 2])
    start = START_MS + day * DAY_MS
    values = {"start_ms": start, "end_ms": start + DAY_MS, "state": "closed", "rows": 1234, "scored_rows": 1234}
    values |= {"shards": 3, "duplicates": 1, "revision": 2, "step": 70, "trained_until": start, "reason": None}
    return WindowView(**values | {"tasks": {"like": metrics.compute()}} | changed)


def page(folder, windows, **changed):
    view = {"name": "days", "windows": windows, "problems": [], "notes": [], "shards": 3, "refresh_s": 5.0}
    path = render_stream(folder, StreamView(**view | changed))
    text = path.read_text()
    parser = HTMLParser()
    parser.feed(text)
    assert list(folder.iterdir()) == [path]
    return text


def test_windows_of_all_states(tmp_path):
    unscored = {"tasks": {}, "duplicates": None, "revision": None, "step": None, "trained_until": None}
    windows = [
        window(0),
        window(1),
        window(2, state="waiting for a checkpoint", **unscored),
        window(3, reason="no checkpoint <here>", **unscored),
    ]
    text = page(tmp_path, windows, notes=["2 actors died and were replaced"], problems=[("a.parquet", "a: broken")])
    assert '<meta http-equiv="refresh" content="5">' in text
    assert text.count("<svg") == 2 and "mean over windows" in text and "Means are means over 2 windows" in text
    for words in ("2026-01-03 00:00", "waiting for a checkpoint", "no checkpoint &lt;here&gt;", "2 actors died"):
        assert words in text
    assert "Set aside" in text and "a: broken" in text
    mean = (windows[0].tasks["like"]["auc"] + windows[1].tasks["like"]["auc"]) / 2
    assert f'<td class="strong">{mean:.4f}</td>' in text


def test_a_page_without_windows_and_one_that_has_ended(tmp_path):
    assert "No rows have come yet." in page(tmp_path, [])
    text = page(tmp_path, [window(0)], refresh_s=None)
    assert "http-equiv" not in text and "ended" in text and "Set aside" not in text
