"""How models learn: one loop for teachers, baselines and students."""

from kdlab.training.history import History, Run
from kdlab.training.loop import Moment, fit
from kdlab.training.predict import predict
from kdlab.training.study import Setting, study
from kdlab.training.teacher_outputs import TeacherOutputs, stored_teacher_outputs

__all__ = [
    "History",
    "Moment",
    "Run",
    "Setting",
    "TeacherOutputs",
    "fit",
    "predict",
    "stored_teacher_outputs",
    "study",
]
