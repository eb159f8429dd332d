"""What one forward pass says of each sample: the recorder's signals, as tensors."""

import torch
from torch import Tensor

# Written once per epoch and sample; `divergence` needs the epoch before, `grand` the features.
PLAIN = ("p_true", "loss", "margin", "gap", "el2n", "entropy", "correct")
SIGNALS = (*PLAIN, "divergence")
KNOWN = (*SIGNALS, "grand")
# What an embedding pass stores of every network, in this order: the format of `signal/<name>`.
STORED = ("p_true", "loss", "margin", "el2n", "entropy", "correct")
_TINY, _LOWEST = 1e-8, -1e30


def measure(
    names: tuple[str, ...],
    logits: Tensor,
    labels: Tensor,
    *,
    before: Tensor | None = None,
    features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log(P + 1e-8), (n, C), and the named signals, (n, len(names)), both float32.

    The logarithms are what the divergence of the next epoch is measured against; without
    `divergence` there are none, (n, 0).

    Args:
        names: Among `KNOWN`.
        logits: float32 (n, C).
        labels: int64 (n,), in `[0, C)`.
        before: (n, C), the logarithms of the epoch before, NaN where unknown; for `divergence`.
        features: (n, d), the last layer's input; for `grand`.
    """
    log_probs = logits.log_softmax(dim=1)
    probs, label = log_probs.exp(), labels[:, None]
    columns: dict[str, Tensor] = {"p_true": probs.gather(1, label)[:, 0]}
    columns["loss"] = -log_probs.gather(1, label)[:, 0]
    others = logits.scatter(1, label, float("-inf")).amax(dim=1)
    columns["margin"] = logits.gather(1, label)[:, 0] - others
    columns["correct"] = (logits.argmax(dim=1) == labels).float()
    # 0·log 0 is 0, also for a class that is ruled out by a logit of -inf.
    columns["entropy"] = -(probs * log_probs.clamp_min(_LOWEST)).sum(dim=1)
    if "gap" in names:
        top = probs.topk(min(2, probs.shape[1]), dim=1).values
        columns["gap"] = top[:, 0] - top[:, -1]
    error = probs.scatter_add(1, label, torch.full_like(label, -1, dtype=probs.dtype))
    columns["el2n"] = error.norm(dim=1)
    if features is not None:
        # The gradient of the last layer's weights and bias, in closed form.
        lengths = features.float().flatten(1).square().sum(dim=1)
        columns["grand"] = columns["el2n"] * (lengths + 1).sqrt()
    logs = logits.new_empty((len(logits), 0))
    if before is not None:
        logs = (probs + _TINY).log()
        columns["divergence"] = (probs * (logs - before)).abs().sum(dim=1)
    return logs, torch.stack([columns[name] for name in names], dim=1)
