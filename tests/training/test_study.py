"""Many runs in one table: the same numbers as single runs, nothing lost on the way."""

import itertools
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study_ranks
import torch
from test_distributed import PATIENCE, TORCHRUN
from tiny import Readable, make_data, make_mlp
from torch import Tensor, nn

from kdlab.distillers import Dist, Distiller, SoftTargets, contestants
from kdlab.losses import hard_label_loss
from kdlab.metrics import evaluate
from kdlab.models import build_for
from kdlab.training import TeacherOutputs, fit, predict
from kdlab.training.distributed import TIMEOUT
from kdlab.training.stacked import fit_stacked, stackable
from kdlab.training.study import Setting, study

DATA = make_data()
TEACHER = make_mlp(DATA, seed=9, hidden=(40,))
fit(TEACHER, DATA, epochs=10, batch_size=16)
SHORT = {"epochs": 3, "batch_size": 20, "lr": 0.05}
METHODS = {name: method() for name, method in contestants(complete=True).items()}


def single(distiller, seed, student=("mlp", {}), data=DATA, teacher=TEACHER, **options):
    model = build_for(student[0], data.shape, data.num_classes, seed=seed, **student[1])
    if distiller is None or not distiller.needs_teacher:
        teacher = None
    fit(model, data, distiller, teacher=teacher, seed=seed, **SHORT | options)
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("hidden", [(), (12,), (12, 8)])
@pytest.mark.parametrize("name", [None, *METHODS])
def test_stacked_mlps_are_single_mlps(name, hidden, optimizer):
    distiller, data = METHODS.get(name), DATA.with_labels(70)
    options = {"hidden": hidden}
    seeds = [4, 0, 11]
    models = [build_for("mlp", data.shape, 4, seed=seed, **options) for seed in seeds]
    before = [model.layers[0].weight.detach().clone() for model in models]
    needs = distiller is not None and distiller.needs_teacher
    outputs = TeacherOutputs.build(TEACHER, data) if needs else None
    few = SHORT | {"lr": 0.01, "optimizer": optimizer, "weight_decay": 1e-3}
    fit_stacked(models, data, distiller, seeds=seeds, teacher_outputs=outputs, **few)
    for model, seed, start in zip(models, seeds, before, strict=True):
        alone = single(distiller, seed, ("mlp", options), data, **few)
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
        assert (model.layers[0].weight - start).abs().max() > 1e-3
        assert not model.training


def test_what_can_be_stacked():
    class WithAdapter(SoftTargets):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    class WithTaps(SoftTargets):
        student_taps = ("layers.0",)

    mlp = make_mlp(DATA)
    assert stackable(mlp, None) and stackable(mlp, SoftTargets() + Dist())
    assert not stackable(build_for("mlp", DATA.shape, 4, activation="gelu"), None)
    assert not stackable(build_for("cnn_tiny", DATA.shape, 4), None)
    assert not stackable(mlp, WithAdapter()) and not stackable(mlp, WithTaps())
    with pytest.raises(ValueError, match=r"^models: only MLPs with ReLU"):
        fit_stacked([mlp], DATA, WithTaps(), seeds=[0])
    with pytest.raises(ValueError, match=r"^seeds: 1 came, expected one for each of 2 models"):
        fit_stacked([mlp, mlp], DATA, seeds=[0])


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("lr", -1.0), ("optimizer", "adam"), ("seeds", [-1])]
)
def test_stacking_refuses_what_fit_refuses(name, value):
    with pytest.raises(ValueError, match=f"^{name.removesuffix('s')}"):
        study("mlp", DATA, {"labels": None}, **{"seeds": 2, **SHORT, name: value})


def test_a_method_of_the_reader_may_use_pictures_and_chance():
    class Own(Distiller):
        needs_teacher = False

        def forward(self, student, teacher, targets):
            weight = student.inputs.abs().mean() + 0 * torch.rand(())
            return {"hard": weight * hard_label_loss(student.logits, targets)}

    results = study("mlp", DATA, {"own": Own()}, seeds=2, **SHORT)
    expected = evaluate(predict(single(Own(), 1), DATA.test.x), DATA.test.y)
    assert results.nll[1] == pytest.approx(expected["nll"], abs=1e-5)


def test_a_method_of_the_reader_may_tell_the_images_apart():
    class Weighted(Distiller):
        needs_teacher = False

        def forward(self, student, teacher, targets):
            weights = torch.linspace(0, 2, len(DATA.train))[student.index]
            losses = hard_label_loss(student.logits, targets, reduction="none")
            return {"hard": (weights * losses).mean()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it can be trained stacked
        results = study("mlp", DATA, {"weighted": Weighted()}, seeds=2, **SHORT)
    expected = evaluate(predict(single(Weighted(), 1), DATA.test.x), DATA.test.y)
    assert results.nll[1] == pytest.approx(expected["nll"], abs=1e-5)


@pytest.mark.parametrize("read", [Tensor.item, float, Tensor.tolist, bool])
def test_a_method_that_reads_values_is_trained_run_by_run(read):
    class Reading(SoftTargets):
        def forward(self, student, teacher, targets):
            terms = super().forward(student, teacher, targets)
            return terms | {"soft": terms["soft"] / (1 + read(terms["soft"].detach()))}

    settings = {"reading": Reading(), "labels": None}
    with pytest.warns(
        UserWarning, match=r"^setting 'reading': Reading cannot .* all seeds"
    ) as said:
        results = study("mlp", DATA, settings, seeds=2, teacher=TEACHER, workers=1, **SHORT)
    assert [warning.filename for warning in said] == [__file__]
    for row, (distiller, seed) in enumerate(itertools.product(settings.values(), (0, 1))):
        expected = evaluate(predict(single(distiller, seed), DATA.test.x), DATA.test.y)
        assert results.nll[row] == pytest.approx(expected["nll"], abs=1e-5)


def test_a_mistake_of_a_method_is_said_as_fit_says_it():
    class Wrong(SoftTargets):
        def forward(self, student, teacher, targets):
            return {"soft": student.logits @ torch.ones(3)}

    settings = {"wrong": Wrong()}
    with pytest.raises(ValueError, match=r"^distiller: .*size mismatch"), pytest.warns(UserWarning):
        study("mlp", DATA, settings, seeds=2, teacher=TEACHER, workers=1, **SHORT)


def test_the_table():
    results = study(
        "mlp",
        DATA,
        {"soft": SoftTargets(), "labels": None, "smooth": METHODS["label_smoothing"]},
        seeds=[5, 2],
        teacher=TEACHER,
        **SHORT,
    )
    assert list(results.setting) == ["soft"] * 2 + ["labels"] * 2 + ["smooth"] * 2
    assert list(results.seed) == [2, 5] * 3
    expected = evaluate(
        predict(single(SoftTargets(), 5), DATA.test.x),
        DATA.test.y,
        predict(TEACHER, DATA.test.x),
    )
    assert set(results) == {"setting", "seed", "val_accuracy", *expected}
    for metric, value in expected.items():
        assert results[metric][1] == pytest.approx(value, abs=1e-4)
    assert results.agreement.notna().tolist() == [True] * 6
    assert results.val_accuracy.between(0, 1).all()


def test_settings_may_differ_in_everything():
    few, other = DATA.with_labels(8), make_mlp(DATA, seed=3)
    settings = {
        "few labels": Setting(data=few),
        "other teacher": Setting(SoftTargets(), teacher=other),
        "faster": Setting(SoftTargets(), options={"lr": 0.2, "epochs": 2}),
        "wider": Setting(student=("mlp", {"hidden": (50,)})),
        "own model": Setting(student=lambda seed: make_mlp(DATA, seed=seed + 1)),
    }
    results = study("mlp", DATA, settings, seeds=[1], teacher=TEACHER, **SHORT)
    singles = [
        single(None, 1, data=few),
        single(SoftTargets(), 1, teacher=other),
        single(SoftTargets(), 1, lr=0.2, epochs=2),
        single(None, 1, ("mlp", {"hidden": (50,)})),
        make_mlp(DATA, seed=2),
    ]
    fit(singles[-1], DATA, seed=1, **SHORT)
    scores = [evaluate(predict(model, DATA.test.x), DATA.test.y) for model in singles]
    for metric in scores[0]:
        expected = [score[metric] for score in scores]
        assert results[metric].tolist() == pytest.approx(expected, abs=1e-4)
        assert len(set(expected)) > 3 or metric == "accuracy"


def test_a_shared_teacher_is_asked_once(monkeypatch):
    asked = []
    build = TeacherOutputs.build.__func__
    monkeypatch.setattr(
        TeacherOutputs, "build", classmethod(lambda cls, *a, **k: asked.append(1) or build(cls, *a))
    )
    study("mlp", DATA, METHODS, seeds=2, teacher=TEACHER, **SHORT)
    assert len(asked) == 1


def test_an_interrupt_keeps_what_is_done(monkeypatch):
    fits = []

    def stopping_fit(*args, **options):
        fits.append(1)
        if len(fits) == 3:
            options["callbacks"] = [lambda moment: signal.raise_signal(signal.SIGINT)]
        return fit(*args, **options)

    monkeypatch.setattr(sys.modules["kdlab.training.study"], "fit", stopping_fit)
    settings = {"labels": None, "soft": SoftTargets()}
    with pytest.warns(UserWarning) as warned:
        results = study("cnn_tiny", DATA, settings, seeds=3, teacher=TEACHER, workers=1, **SHORT)
    assert "stopped: 2 of 6 runs are done and kept" in [str(w.message) for w in warned]
    assert results[["setting", "seed"]].values.tolist() == [["labels", 0], ["soft", 0]]


def test_progress_on_a_terminal(capsys):
    study("mlp", DATA, {"labels": None}, seeds=2, progress=True, **SHORT)
    assert "training the students: 100%" in capsys.readouterr().err


# --- worker processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_workers():
    """CNN students in two processes, under a method that exists in this test alone."""

    class Homemade(SoftTargets):
        def forward(self, student, teacher, targets):
            terms = super().forward(student, teacher, targets)
            return {"soft": terms["soft"], "size": 1e-3 * student.logits.square().mean()}

    settings = {"labels": None, "homemade": Homemade(3.0, 1.0)}
    results = study(
        "cnn_tiny", DATA, settings, seeds=2, teacher=TEACHER, workers=2, device="cpu", **SHORT
    )
    return settings, results


def test_cnns_in_workers_are_single_runs(in_workers):
    settings, results = in_workers
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for name, distiller in settings.items():
            for seed in (0, 1):
                model = single(distiller, seed, ("cnn_tiny", {}))
                answers = predict(TEACHER, DATA.test.x)
                scores = evaluate(predict(model, DATA.test.x), DATA.test.y, answers)
                rows.append({"setting": name, "seed": seed, **scores})
    finally:
        torch.set_num_threads(threads)
    expected = pd.DataFrame(rows)
    assert results[["setting", "seed"]].equals(expected[["setting", "seed"]])
    for metric in expected.columns[2:]:
        np.testing.assert_allclose(results[metric], expected[metric], atol=1e-5)


@pytest.mark.parametrize(
    ("threads", "workers", "expected"), [("3", None, 3), ("", None, 4), ("3", 2, 2), ("9", None, 4)]
)
def test_a_sweep_says_how_many_workers_a_study_takes(monkeypatch, threads, workers, expected):
    def parallel(n_jobs, **options):
        return lambda jobs: [{"setting": "labels", "seed": 0, "processes": n_jobs} for _ in jobs]

    monkeypatch.setenv("KDLAB_THREADS", threads)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("joblib.Parallel", parallel)
    results = study("cnn_tiny", DATA, {"labels": None}, seeds=4, workers=workers, device="cpu")
    assert set(results["processes"]) == {expected}


def test_an_error_in_a_worker_reaches_the_reader(in_workers):
    with pytest.raises(ValueError, match=r"^precision: 'fp16' came"):
        study("cnn_tiny", DATA, {"labels": None}, seeds=2, workers=2, precision="fp16")


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny import make_data
from kdlab.training.study import study
rows = 0
class Slow:
    def __call__(self, moment):
        import time
        time.sleep(3.0 if moment.epoch else 0.0)
def settings():
    from kdlab.training.study import Setting
    return {"quick": Setting(), "slow": Setting(options={"callbacks": [Slow()], "epochs": 9})}
module = sys.modules["kdlab.training.study"]
class Told(module.Progress):
    def advance(self, units=1, note=""):
        print("row", flush=True)
module.Progress = Told
table = study("cnn_tiny", make_data(), settings(), seeds=2, workers=2, epochs=1, batch_size=48)
print("kept", sorted(set(table.setting)), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("whole_group", [False, True], ids=["the parent", "the whole group"])
def test_an_interrupt_of_worker_processes_keeps_what_is_done(whole_group):
    """Jupyter interrupts the whole process group, a plain kill the parent alone."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "row\n"
        if whole_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=60)
    assert "kept ['quick']" in said, said + complaints
    assert process.returncode == 0


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="gloo")
def test_two_ranks_make_the_table_of_one_process(tmp_path):
    """KDLAB_THREADS would have each rank start workers, which took themselves for ranks."""
    done = subprocess.run(
        [*TORCHRUN, "study_ranks.py", tmp_path],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "KDLAB_THREADS": "2", TIMEOUT: "60"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (pd.read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    one = study_ranks.table(Readable(study_ranks.DATA))
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(first[list(one)], one, rtol=1e-4, atol=1e-5)
    assert set(first.asked) == {(50 + 50) // 2}  # each rank asked about half the images, once
    assert first.refusal[0].startswith("workers: 2 came under torchrun, whose 2 ranks share each")
