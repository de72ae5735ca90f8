"""One self-contained HTML page about a run directory.

`page.render_report` makes it. Nothing is imported here: ranks that train read a run's log, and have no use for
matplotlib.
"""
