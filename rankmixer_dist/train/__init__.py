"""What happens in a run: the step, the loop, checkpoints, logs and scoring."""
