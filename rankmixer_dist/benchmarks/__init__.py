"""What bench.py can measure: one module each, with `measure(config, **sizes) -> list[Figure]`."""
