"""The training loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_task_loss(
    logits_BK: Tensor, labels_BK: Tensor, weight_B: Tensor, task_weights_K: Tensor, global_weight: float | Tensor
) -> tuple[Tensor, Tensor]:
    """This rank's share of the weighted cross-entropy of the global batch.

        l_k = sum_b weight_b * BCE(logit_bk, label_bk) / global_weight,    loss = sum_k task_weight_k * l_k

    A plain weighted sum over tasks: the weights are not normalised. Summed over all ranks, l_k is task k's weighted
    mean loss. A row of weight 0 adds nothing and gets exactly zero gradient, whatever its logits and labels hold,
    NaN and infinity included; so does a task whose label is NaN, that is unknown. `global_weight` counts rows with
    and without a known label, so an unlabelled row does not make the others weigh more.

    Args:
        logits_BK: [B, K], any float dtype; the loss is computed in fp32 or wider.
        labels_BK: [B, K] in [0, 1], or NaN where unknown.
        weight_B: [B], 0 for padding rows.
        task_weights_K: [K].
        global_weight: sum of `weight_B` over all rows of all ranks.

    Returns:
        The loss, a scalar, and l_k as [K], both with gradient.
    """
    dtype = torch.promote_types(logits_BK.dtype, torch.float32)
    counts_BK = (weight_B > 0).unsqueeze(1) & ~labels_BK.isnan()
    # Replaced rather than multiplied by 0, since 0 * inf is NaN.
    logits_BK = logits_BK.to(dtype).where(counts_BK, 0.0)
    labels_BK = labels_BK.to(dtype).where(counts_BK, 0.0)
    rows_BK = F.binary_cross_entropy_with_logits(logits_BK, labels_BK, reduction="none")
    weights_BK = weight_B.to(dtype).unsqueeze(1) * counts_BK  # 0 where not counted, though BCE(0, 0) is log 2
    per_task_K = (rows_BK * weights_BK).sum(dim=0) / global_weight
    return (per_task_K * task_weights_K.to(dtype)).sum(), per_task_K
