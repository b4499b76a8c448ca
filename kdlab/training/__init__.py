"""How models learn: one loop for teachers, baselines and students."""

from kdlab.training.history import History, Run
from kdlab.training.loop import Moment, fit
from kdlab.training.predict import predict, read_taps
from kdlab.training.study import Setting, study
from kdlab.training.teacher_outputs import TeacherOutputs, cache_bytes, stored_teacher_outputs
from kdlab.training.teachers import load_teacher

__all__ = [
    "History",
    "Moment",
    "Run",
    "Setting",
    "TeacherOutputs",
    "cache_bytes",
    "fit",
    "load_teacher",
    "predict",
    "read_taps",
    "stored_teacher_outputs",
    "study",
]
