"""Checkpoints: pieces of tensors to files and back, sealed by checksums, complete or absent."""
