"""Several labels at once, and values: from tensors to a distilled student."""

import copy

import pytest
import torch
from torch import nn

from kdlab import losses
from kdlab.datasets import from_tensors
from kdlab.distillers import (
    Hints,
    Labels,
    LogitMatching,
    Outputs,
    SigmoidTargets,
    SoftTargets,
    ValueTargets,
    available,
    build,
)
from kdlab.training import fit, predict

G = torch.Generator().manual_seed(0)
X = torch.randn(240, 6, generator=G)
TRUE = torch.randn(6, 3, generator=G)
RAW = (X @ TRUE).tanh()
TARGETS = {"labels": (RAW > 0).float(), "values": RAW}
METHODS = {"labels": SigmoidTargets, "values": ValueTargets}
SHORT = {"epochs": 6, "batch_size": 32, "lr": 0.1, "weight_decay": 0.0}


def data(task, unlabelled=0):
    y = TARGETS[task].clone()
    y[:unlabelled] = torch.nan
    return from_tensors(X[:200], y[:200], X[200:], y[200:], task=task)


def network(seed=0, hidden=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def said(model, data):
    outputs = predict(model, data.test.x)
    return outputs.sigmoid() if data.task == "labels" else outputs


@pytest.mark.parametrize("task", METHODS)
def test_terms_are_losses_times_weights(task):
    s, t, y = X[:8, :3], X[8:16, :3], TARGETS[task][:8]
    hard = {"labels": losses.multi_label_loss, "values": losses.value_loss}[task](s, y)
    if task == "labels":
        method = SigmoidTargets(2.0, alpha=0.25)
        expected = {"hard": 0.75 * hard, "soft": 0.25 * losses.sigmoid_target_loss(s, t, 2.0)}
    else:
        method = ValueTargets(alpha=0.25, margin=0.1)
        bound = losses.value_target_loss(s, t, y, 0.1)
        expected = {"hard": 0.75 * hard, "teacher": 0.25 * bound}
    got = method(Outputs(s, task=task), Outputs(t), y)
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
        assert value > 0


@pytest.mark.parametrize("task", METHODS)
def test_a_teacher_is_trained_and_passes_on_what_few_labels_do_not_say(task):
    teacher = network(1, 64)
    taught = fit(teacher, data(task), **(SHORT | {"epochs": 40}))
    key = {"labels": "val_accuracy", "values": "val_r2"}[task]
    assert taught.history.last[key] > 0.9
    few = data(task, unlabelled=180)
    assert few.val.labelled.all() and int(few.train.labelled.sum()) == 18
    alone, pupil, before = network(2), network(2), copy.deepcopy(teacher.state_dict())
    fit(alone, few, **SHORT)
    run = fit(pupil, few, METHODS[task](), teacher=teacher, **SHORT)
    assert run.history.last["hard"] > 0
    error = [float((said(m, few) - said(teacher, few)).square().mean()) for m in (pupil, alone)]
    assert error[0] < 0.7 * error[1]
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize("task", METHODS)
@pytest.mark.parametrize("margin", [None, 0.1])
def test_micro_batches_and_checkpoints_change_nothing(task, margin, tmp_path):
    few, teacher = data(task, unlabelled=120), network(1, 64)
    method = ValueTargets(margin=margin) if task == "values" else SigmoidTargets()
    whole, parts, resumed = network(), network(), network()
    fit(whole, few, method, teacher=teacher, **SHORT)
    fit(parts, few, method, teacher=teacher, micro_batch=5, **SHORT)
    path = tmp_path / "run.pt"
    stop = type("Stop", (Exception,), {})

    def interrupt(moment):
        if moment.epoch == 3:
            raise stop

    with pytest.raises(stop):
        fit(resumed, few, method, teacher=teacher, checkpoint=path, callbacks=[interrupt], **SHORT)
    fit(resumed, few, method, teacher=teacher, checkpoint=path, **SHORT)
    for other, bound in ((parts, 1e-5), (resumed, 0.0)):
        pairs = zip(whole.parameters(), other.parameters(), strict=True)
        assert max(float((a - b).abs().max()) for a, b in pairs) <= bound


@pytest.mark.parametrize("task", METHODS)
@pytest.mark.parametrize("method", [LogitMatching(), Labels() + 1e-3 * Hints("0")], ids=["z", "in"])
def test_what_compares_no_softmax_learns_any_task(task, method):
    run = fit(network(), data(task), method, teacher=network(1), **(SHORT | {"lr": 0.01}))
    assert run.history.last["hard"] > 0


@pytest.mark.parametrize("task", METHODS)
def test_what_compares_softmaxes_is_refused_by_name(task):
    suited = METHODS[task].__name__
    for method in (SoftTargets(), Labels() + SoftTargets(), build("decoupled")):
        with pytest.raises(ValueError, match=rf"^distiller: got .*task '{task}'.*{suited}"):
            fit(network(), data(task), method, teacher=network(1), **SHORT)
    assert suited in {method.__name__ for method in available(task).values()}
    assert "soft_targets" not in available(task)
    with pytest.raises(ValueError, match=r"^class_weights: got some for the task"):
        fit(network(), data(task), class_weights=[1.0, 1.0, 1.0], **SHORT)


def test_classes_of_any_shape_come_from_tensors_too():
    y = (X @ TRUE).argmax(1)
    plain = from_tensors(X[:200], y[:200], X[200:], y[200:], ["a", "b", "c"], val_fraction=0.2)
    assert plain.classes == ("a", "b", "c") and len(plain.val) == 40 and plain.shape == (6,)
    assert fit(network(), plain, **(SHORT | {"epochs": 20})).history.last["val_accuracy"] > 0.8
    assert set(map(tuple, plain.val.x.tolist())).isdisjoint(map(tuple, plain.train.x.tolist()))
    images = torch.randn(20, 3, 4, 4)
    pictures = from_tensors(images, torch.arange(20) % 2, images, torch.arange(20) % 2)
    assert pictures.mean == (0.0,) * 3 and torch.equal(pictures.test.x, images)
    assert pictures.subset(6).train.x.shape == (6, 3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression"}, "^unknown task 'regression'"),
        (
            {"y_train": TARGETS["values"][:200]},
            r"^data.train.y: got values from -0.99.* to",
        ),
        ({"y_test": TARGETS["labels"][200:, :2]}, r"^data.test.y: got .*\[40, 2\], expected"),
        ({"y_test": torch.full((40, 3), torch.nan)}, "^data.test.y: got 40 of 40 rows with NaN"),
        ({"x_train": X[:100]}, "^y_train: got 200 targets"),
        ({"x_train": X[:200].numpy()}, "^x_train: got ndarray"),
        ({"x_train": X[:200].to_sparse()}, "^x_train: got a sparse_coo tensor"),
        ({"x_train": X[:200, :0]}, r"^x_train: got a strided tensor \[200, 0\]"),
        ({"x_val": X[:3]}, "^x_val and y_val belong together"),
        ({"val_fraction": 1.5}, "^val_fraction: got 1.5"),
        ({"classes": ["one"]}, "^data.train.y: got"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_named(changes, message):
    y = TARGETS["labels"]
    usual = {"x_train": X[:200], "y_train": y[:200], "x_test": X[200:], "y_test": y[200:]}
    with pytest.raises(ValueError, match=message):
        from_tensors(**({"task": "labels"} | usual | changes))
