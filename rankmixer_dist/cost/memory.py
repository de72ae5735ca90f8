"""Memory that a rank's dense model takes in training, in closed form, under DeepSpeed's ZeRO stages."""

_FP32 = 4
_MOMENTS = {"adam": 2, "adagrad": 1, "rmsprop": 1}


def moments_of(optimizer: str) -> int:
    """fp32 values that an optimizer keeps for each parameter, beside the weight."""
    return _MOMENTS[optimizer]


def dense_state_bytes(
    parameters: int, *, optimizer: str, zero_stage: int, precision: str, ranks: int, engine: str = "deepspeed"
) -> int:
    """Weights, gradients, the buffer that they are exchanged in, and the optimizer's state.

    P parameters of b bytes, 4 in fp32 and 2 in bf16, take P b for each of the first three, on every rank. ZeRO stages 1
    and 2 share out an fp32 copy of the weights, one of the gradients and the moments over the ranks; stage 2's own
    saving, gradients that are dropped as they are exchanged, is left out, as its peak has most of them. Stage 0 keeps
    the moments on every rank, and in bf16 the fp32 copies too.
    """
    held = _FP32 if precision == "fp32" else 2
    whole, shared = 3 * held, _FP32 * (2 + moments_of(optimizer))
    if engine == "plain":
        return parameters * _FP32 * (2 + moments_of(optimizer))
    if zero_stage:
        return parameters * whole + -(-parameters // ranks) * shared
    return parameters * (whole + (_FP32 * moments_of(optimizer) if precision == "fp32" else shared))
