"""What we measure: quality of the predictions, obedience to the teacher, sureness of a mean."""

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

__all__ = [
    "Interval",
    "Reliability",
    "accuracy",
    "agreement",
    "evaluate",
    "expected_calibration_error",
    "kl_to_teacher",
    "mean_interval",
    "negative_log_likelihood",
    "paired_difference",
    "reliability",
]
