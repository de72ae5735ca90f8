"""Streaming evaluation: shards and checkpoints as they come, to exact figures of each window of time."""
