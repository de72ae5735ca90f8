"""One self-contained HTML page about a run directory."""

from rankmixer_dist.report.page import render_report

__all__ = ["render_report"]
