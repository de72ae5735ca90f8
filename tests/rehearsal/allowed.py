"""Where the host may wait for the device, with the reason: a new place fails, and so does a line that has none."""

_LOG_LINE = "once a log line"

IN_A_STEP: dict[str, str] = {
    "read rankmixer_dist/train/loop.py:_Interval.close": _LOG_LINE,
}
"""On the stand-in device, in the training loop."""

_PART = " from rankmixer_dist/sparse/pending.py:_Part."
_START, _SEND, _RECEIVE, _LOOK_UP = (_PART + act for act in ("__init__", "send", "receive", "look_up"))
_COUNTER = "FBGEMM counts its steps in a tensor of the host"
_EXCHANGE = "TorchRec tells the ranks how many ids each gets"
_FIRST = "at the first lookup"
_RECAT = "upload torchrec/distributed/dist_data.py:_get_recat"
_FBGEMM = "read fbgemm_gpu/split_table_batched_embeddings_ops_training.py:SplitTableBatchedEmbeddingBagsCodegen.forward"

IN_AN_EXCHANGE: dict[str, str] = {
    "read torchrec/distributed/dist_data.py:_safe_tolist_2d" + _SEND: _EXCHANGE,
    "read torchrec/sparse/jagged_tensor.py:_safe_tolist" + _START: _EXCHANGE,
    "read torchrec/sparse/jagged_tensor.py:_safe_tolist" + _RECEIVE: _EXCHANGE,
    "upload torchrec/distributed/dist_data.py:KJTAllToAllSplitsAwaitable.__init__" + _START: _EXCHANGE,
    _RECAT + _SEND: "TorchRec makes the order of what came on the host",
    _FBGEMM + _LOOK_UP: "FBGEMM reads its count of steps once; here, where counts have no values, at each lookup",
}
"""On the stand-in device, in the lookup of sharded tables."""

_UNSHARDED_BF16 = "DeepSpeed's optimizer for bf16 without ZeRO asks every parameter; a run on GPUs warns of it"
_STEP = " from rankmixer_dist/parallel/engine.py:DeepSpeedEngine.step"

BY_CHOICE: dict[str, dict[str, str]] = {
    "sharded quickstart": IN_AN_EXCHANGE,
    "sharded kuairand_pure": IN_AN_EXCHANGE,
    "skips": {"read rankmixer_dist/parallel/topology.py:any_over_ranks": "asks before the batch touches a weight"},
    "zero 0 bf16": {
        "read deepspeed/runtime/utils.py:CheckOverflow.has_overflow_serial" + _STEP: _UNSHARDED_BF16,
        "read deepspeed/runtime/utils.py:CheckOverflow.has_overflow" + _STEP: _UNSHARDED_BF16,
        "upload deepspeed/runtime/utils.py:CheckOverflow.has_overflow" + _STEP: _UNSHARDED_BF16,
        "read deepspeed/runtime/utils.py:get_weight_norm" + _STEP: _UNSHARDED_BF16,
        "upload deepspeed/runtime/utils.py:get_weight_norm" + _STEP: _UNSHARDED_BF16,
    },
}
"""The same, where a config chose it: case of `test_step` -> places."""

SCORES = "read rankmixer_dist/train/scoring.py:score_split"
SCORES_OF_A_SHARD = "read rankmixer_dist/train/scorer.py:ModelScorer.score"

IN_SCORING: dict[str, str] = {
    "read rankmixer_dist/layers/experts.py:PerTokenExperts._sparse_by_expert": "the host gives each expert its rows",
    "read rankmixer_dist/train/paths.py:path_gap": _LOG_LINE,
    "read rankmixer_dist/train/routing_counts.py:RoutingCounts.figures": "once a split",
    SCORES: "the scores themselves",
}
"""On the stand-in device, while a split is scored."""

IN_STREAMING: dict[str, str] = {
    SCORES_OF_A_SHARD: "the scores themselves",
    "read torchrec/sparse/jagged_tensor.py:_safe_tolist" + _START: _EXCHANGE,
    _RECAT + _SEND: "TorchRec makes the order of what came on the host",
    _FBGEMM + _LOOK_UP: "FBGEMM reads its count of steps once; here, where counts have no values, at each lookup",
    "upload torchrec/distributed/embedding.py:ShardedEmbeddingCollection._create_input_dist" + _START: _FIRST,
    "upload torchrec/distributed/embeddingbag.py:ShardedEmbeddingBagCollection._create_input_dist" + _START: _FIRST,
    "upload torchrec/distributed/sharding/rw_sharding.py:RwSparseFeaturesDist.__init__" + _START: _FIRST,
}
"""On the stand-in device, while an actor of the streaming evaluation scores a shard."""

READS_OF_A_REAL_STEP: dict[str, tuple[int, str]] = {
    "read deepspeed/runtime/zero/stage_1_and_2.py:DeepSpeedZeroOptimizer._optimizer_step"
    " from rankmixer_dist/parallel/engine.py:DeepSpeedEngine.step": (
        1,
        "Adam counts its steps in a tensor of the host",
    ),
    _FBGEMM + _LOOK_UP: (4, _COUNTER),
    "read torchrec/distributed/dist_data.py:_safe_tolist_2d" + _SEND: (4, _EXCHANGE),
    "read torchrec/sparse/jagged_tensor.py:_safe_tolist" + _START: (2, _EXCHANGE),
    "read torchrec/sparse/jagged_tensor.py:_safe_tolist" + _RECEIVE: (2, _EXCHANGE),
}
"""On two CPU ranks with sharded tables, where every tensor counts: how often a step."""

ON_A_GPU: dict[str, str] = {}
"""What a real GPU has shown besides: for the day with one, which fills it."""

OPERATORS = 335
"""That a step of the same gives, at most."""
LARGEST_BYTES = 1_200_000
"""Of a tensor that it makes, at most: a table's rows."""

WAITS_BY_NAME: dict[str, str] = {
    "rankmixer_dist/checkpoint/host_copies.py": "a stage is emptied once it is filled, while a checkpoint is taken",
    "rankmixer_dist/checkpoint/saver.py": "what a checkpoint takes has been written",
    "rankmixer_dist/parallel/host_checks.py": "the doctor measures a network",
    "rankmixer_dist/parallel/spans.py": "the seconds of a log line",
    "rankmixer_dist/train/peak.py": "a GPU is measured before the first step",
}
"""Files that synchronise a GPU, an event or a stream by name, which no code does that runs on the stand-in device."""
