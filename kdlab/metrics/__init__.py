"""What we measure: predictions, obedience to the teacher, inner layers, sureness of a mean."""

from kdlab.metrics.intervals import Interval, mean_interval, paired_difference
from kdlab.metrics.quality import (
    Reliability,
    accuracy,
    agreement,
    evaluate,
    expected_calibration_error,
    kl_to_teacher,
    negative_log_likelihood,
    reliability,
)
from kdlab.metrics.similarity import cka, cka_matrix, probe_accuracy

__all__ = [
    "Interval",
    "Reliability",
    "accuracy",
    "agreement",
    "cka",
    "cka_matrix",
    "evaluate",
    "expected_calibration_error",
    "kl_to_teacher",
    "mean_interval",
    "negative_log_likelihood",
    "paired_difference",
    "probe_accuracy",
    "reliability",
]
