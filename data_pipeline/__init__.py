"""From raw logs to batches, and from predictions to metrics over Ray; the only door to ray."""
