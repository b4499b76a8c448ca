"""What we measure: predictions, obedience to the teacher, inner layers, sureness of a mean."""

from kdlab.metrics.cost import Cost, cost
from kdlab.metrics.exits import (
    ExitCurve,
    choose_threshold,
    exit_accuracies,
    exit_curve,
    first_sure_exit,
)
from kdlab.metrics.gates import GateReport, gate_report, gate_report_of
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
    scores,
)
from kdlab.metrics.similarity import cka, cka_matrix, probe_accuracy

__all__ = [
    "Cost",
    "ExitCurve",
    "GateReport",
    "Interval",
    "Reliability",
    "accuracy",
    "agreement",
    "choose_threshold",
    "cka",
    "cka_matrix",
    "cost",
    "evaluate",
    "exit_accuracies",
    "exit_curve",
    "expected_calibration_error",
    "first_sure_exit",
    "gate_report",
    "gate_report_of",
    "kl_to_teacher",
    "mean_interval",
    "negative_log_likelihood",
    "paired_difference",
    "probe_accuracy",
    "reliability",
    "scores",
]
