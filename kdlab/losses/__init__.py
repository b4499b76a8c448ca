"""What is compared: pure functions, tensors in, a tensor out.

``f(student, teacher, ..., reduction="mean")``; see `kdlab.losses.soft_targets` for the conventions.
"""

from kdlab.losses.checks import unchecked_values
from kdlab.losses.labels import hard_label_loss
from kdlab.losses.soft_targets import (
    decoupled_loss,
    dist_loss,
    kl_divergence,
    soft_target_loss,
    standardize_logits,
    ttm_loss,
)

__all__ = [
    "decoupled_loss",
    "dist_loss",
    "hard_label_loss",
    "kl_divergence",
    "soft_target_loss",
    "standardize_logits",
    "ttm_loss",
    "unchecked_values",
]
