"""Embedding tables and their placement over ranks; the only door to torchrec."""
