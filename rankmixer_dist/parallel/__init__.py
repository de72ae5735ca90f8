"""Processes, the exchange between them and the dense engine; the only door to torch.distributed and deepspeed."""
