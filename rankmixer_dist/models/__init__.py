"""Models built from the layers: embeddings in, task logits out."""
