"""What somebody does with a run: one module a verb, each with `main(arguments)`, which `run_verb` runs."""

VERBS = (
    "doctor", "preprocess", "plan", "train", "evaluate", "stream_evaluate", "compare", "baseline", "bench", "torchrun",
)  # fmt: skip
"""In the order in which a run meets them."""
