"""`fit` against a loop in plain torch, with schedule and Nesterov's momentum written by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import distance, make_cnn, make_data, make_mlp

from kdlab.datasets.views import Augmentation
from kdlab.distillers import MutualLearning, SoftTargets
from kdlab.training import fit

EPOCHS, BATCH, LR, SEED, DECAY = 3, 20, 0.05, 7, 1e-3
DATA = make_data()  # 96 images: four whole batches of 20, and 16 images left over


def soft_targets(logits, answers, targets, temperature=3.0, alpha=0.7):
    hard = F.cross_entropy(logits, targets, ignore_index=-1)
    log_p, log_q = (F.log_softmax(z / temperature, 1) for z in (answers, logits))
    soft = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return {"hard": (1 - alpha) * hard, "soft": alpha * soft}


def labels_alone(logits, answers, targets):
    return {"hard": F.cross_entropy(logits, targets, ignore_index=-1)}


def train_by_hand(model, data, loss, teacher=None, nesterov=True):
    """Return the mean of each term in each epoch."""
    steps = len(data.train) // BATCH
    total, now = EPOCHS * steps, 0
    momentum = {p: None for p in model.parameters()}
    means = []
    for epoch in range(EPOCHS):
        shuffle = torch.Generator().manual_seed(SEED * 1_000_003 + epoch)
        order = torch.randperm(len(data.train), generator=shuffle)
        sums: dict[str, float] = {}
        for step in range(steps):
            climb = max(1, round(total / 10))
            if now < climb:
                lr = LR * (now + 1) / climb
            else:
                lr = LR * (1 + math.cos(math.pi * (now - climb) / (total - climb))) / 2
            index = order[step * BATCH : (step + 1) * BATCH]
            x, y = data.train.x[index], data.train.y[index]
            answers = None
            if teacher is not None:
                teacher.eval()
                with torch.no_grad():
                    answers = teacher(x)
            model.train()
            model.zero_grad()
            terms = loss(model(x), answers, y)
            sum(terms.values()).backward()
            with torch.no_grad():
                for p, v in momentum.items():
                    slope = p.grad + DECAY * p
                    v = momentum[p] = slope if v is None else 0.9 * v + slope
                    p -= lr * (slope + 0.9 * v if nesterov else v)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item() / steps
            now += 1
        means.append(sums)
    model.eval()
    return means


def by_fit(model, data, distiller=None, teacher=None, **options):
    return fit(
        model,
        data,
        distiller,
        teacher=teacher,
        epochs=EPOCHS,
        batch_size=BATCH,
        lr=LR,
        seed=SEED,
        weight_decay=DECAY,
        device="cpu",
        **options,
    )


def assert_equal(run, mine, theirs, means, tolerance=1e-5):
    assert distance(mine, theirs) < tolerance
    assert len(run.history) == EPOCHS
    for row, expected in zip(run.history.rows, means, strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=tolerance)
        assert row["loss"] == pytest.approx(sum(expected.values()), abs=tolerance)


@pytest.mark.parametrize("make", [make_mlp, make_cnn])
@pytest.mark.parametrize("labels", [96, 30])
def test_training_on_labels(make, labels):
    data = DATA.with_labels(labels)
    mine, theirs = make(data), make(data)
    run = by_fit(mine, data)
    assert_equal(run, mine, theirs, train_by_hand(theirs, data, labels_alone))
    assert distance(mine, make(data)) > 0.01


@pytest.mark.parametrize("make", [make_mlp, make_cnn])
@pytest.mark.parametrize("labels", [96, 30, 0])
def test_soft_targets_under_a_live_teacher(make, labels):
    data = DATA.with_labels(labels)
    teacher = make_cnn(data, seed=9, dropout=0.5)  # its mode matters
    mine, theirs = make(data), make(data)
    still = Augmentation(shift=0)  # views without end, all alike: the teacher is asked live
    run = by_fit(mine, data, SoftTargets(3.0, 0.7), teacher, augment=still)
    loss = soft_targets if labels else lambda *a: {"soft": soft_targets(*a)["soft"]}
    assert_equal(run, mine, theirs, train_by_hand(theirs, data, loss, teacher))


@pytest.mark.parametrize("make", [make_mlp, make_cnn])
def test_a_cached_teacher_trains_the_same_student(make):
    teacher, mine, theirs = make_cnn(DATA, seed=9), make(DATA), make(DATA)
    run = by_fit(mine, DATA, SoftTargets(3.0, 0.7), teacher)
    means = train_by_hand(theirs, DATA, soft_targets, teacher)
    assert_equal(run, mine, theirs, means, tolerance=3e-4)


class SideBySide(torch.nn.Module):
    """Two networks that share nothing but the images."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.first(x), self.second(x)


def mutual(pair, answers, targets, temperature=2.0, weight=0.7, detached=True):
    terms = {}
    for prefix, own, other in (("", *pair), ("peer_", *reversed(pair))):
        terms[f"{prefix}hard"] = F.cross_entropy(own, targets, ignore_index=-1)
        log_p = F.log_softmax((other.detach() if detached else other) / temperature, 1)
        log_q = F.log_softmax(own / temperature, 1)
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        terms[f"{prefix}mutual"] = weight * temperature**2 * kl
    return terms


@pytest.mark.parametrize("labels", [96, 30])
def test_mutual_learning_trains_two_networks_side_by_side(labels):
    data = DATA.with_labels(labels)
    mine, peer = make_cnn(data), make_mlp(data, seed=3)
    method = MutualLearning(peer, temperature=2.0, weight=0.7)
    run = by_fit(mine, data, method)
    both = SideBySide(make_cnn(data), make_mlp(data, seed=3))
    assert_equal(run, mine, both.first, train_by_hand(both, data, mutual))
    assert distance(method.peer.eval(), both.second) < 1e-5
    assert distance(peer, make_mlp(data, seed=3)) == 0 < distance(method.peer, peer)
    attached = SideBySide(make_cnn(data), make_mlp(data, seed=3))
    train_by_hand(attached, data, lambda *a: mutual(*a, detached=False))
    assert distance(attached.first, both.first) > 1e-3


def test_the_comparison_tells_small_differences():
    theirs, other = make_mlp(DATA), make_mlp(DATA)
    train_by_hand(theirs, DATA, labels_alone)
    train_by_hand(other, DATA, labels_alone, nesterov=False)
    assert distance(theirs, other) > 1e-3


def test_rows_of_the_history():
    run = by_fit(make_mlp(DATA), DATA)
    assert list(run.history.rows[0]) == ["epoch", "loss", "hard", "lr", "val_accuracy", "val_nll"]
    assert [row["epoch"] for row in run.history.rows] == [0, 1, 2]
    assert run.history.frame()["lr"].is_monotonic_decreasing
    assert run.steps == 12 and not run.interrupted and run.samples_per_second > 0
    last = by_fit(make_mlp(DATA), DATA, validate=False).history
    assert ["val_nll" in row for row in last.rows] == [False, False, True]
    assert last.last["val_accuracy"] == run.history.last["val_accuracy"]


def test_a_batch_larger_than_the_data_is_the_data():
    small = DATA.subset(12)
    run = fit(make_mlp(DATA), small, epochs=2, batch_size=64)
    assert run.steps == 2 and run.facts["micro_batch"] == 12


def test_adamw():
    mine, theirs = make_mlp(DATA), make_mlp(DATA)
    fit(mine, DATA, epochs=1, batch_size=96, lr=0.01, optimizer="adamw", weight_decay=0.1)
    update = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    F.cross_entropy(theirs(DATA.train.x), DATA.train.y).backward()
    update.step()
    assert distance(mine, theirs) < 1e-5


def test_a_frozen_layer_of_the_student_stays():
    model = make_mlp(DATA)
    model.layers[0].requires_grad_(False)
    before = copy.deepcopy(model)
    by_fit(model, DATA)
    assert torch.equal(model.layers[0].weight, before.layers[0].weight)
    assert not torch.equal(model.layers[1].weight, before.layers[1].weight)
