"""Single-device mathematics of the dense part; nothing here imports more than torch."""
