"""Distributed training of RankMixer ranking models: sparse tables by TorchRec, dense backbone by DeepSpeed."""
