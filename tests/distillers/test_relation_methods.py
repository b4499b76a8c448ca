"""Relation distillation: losses times weights, any pair of models, and CRD's memory."""

import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kdlab.datasets import Split, from_arrays
from kdlab.distillers import (
    Contrastive,
    CorrelationCongruence,
    Labels,
    Outputs,
    Probabilistic,
    Relational,
    SimilarityPreserving,
    SoftTargets,
    build,
)
from kdlab.losses import (
    contrastive_loss,
    correlation_congruence_loss,
    probabilistic_transfer_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_preserving_loss,
)
from kdlab.models import Taps, build_for
from kdlab.training import fit

METHODS = {
    "similarity_preserving": ["similarity"],
    "relational": ["distance", "angle"],
    "correlation_congruence": ["correlation"],
    "probabilistic": ["probabilistic"],
    "contrastive": ["contrastive"],
}
every_method = pytest.mark.parametrize("name", METHODS)
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.05}


def make_data(n=48, classes=4, size=12):
    random = np.random.default_rng(0)
    patterns = random.random((classes, size, size))

    def draw(count):
        y = np.arange(count) % classes
        x = 0.6 * patterns[y] + 0.4 * random.random((count, size, size))
        return x[..., None].astype(np.float32), y

    return from_arrays(*draw(n), *draw(n), x_val=draw(20)[0], y_val=np.arange(20) % classes)


DATA = make_data()


def model(name, seed=0):
    return build_for(name, DATA.shape, DATA.num_classes, seed=seed)


class TokenModel(nn.Module):
    """Patches as tokens ``[B, N, d]``, N of the patch size's choosing."""

    def __init__(self, patch, width):
        super().__init__()
        self.cut = nn.Conv2d(1, width, patch, patch)
        self.block = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.pool = nn.Identity()
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.pool(self.block(self.cut(x).flatten(2).mT).mean(1)))


def batch_of(net, paths, index, dtype=torch.float32, grad=True):
    with Taps(net, paths) as taps, torch.set_grad_enabled(grad):
        logits = net(DATA.train.x[index])
        return Outputs(logits, {path: taps[path].to(dtype) for path in paths}, None, index)


INDEX = torch.tensor([3, 40, 7, 22, 13, 0, 31, 18])


def prepared(distiller, student, teacher, train=DATA.train):
    torch.manual_seed(1)
    with torch.no_grad():
        distiller.prepare(student.eval(), teacher.eval(), train)
    return distiller


def forward(distiller, student, teacher, index=INDEX, dtype=torch.float32):
    return distiller(
        batch_of(student, distiller.student_taps, index, dtype),
        batch_of(teacher, distiller.teacher_taps, index, dtype),  # as gradient methods want it
        DATA.train.y[index],
    )


# ---- what all five have in common ----------------------------------------------------------------


def test_terms_are_losses_times_weights():
    student, teacher = model("cnn_tiny").eval(), model("resnet8", seed=1).eval()
    layers = {"stage3": "stage2", "pool": "pool"}
    mine = batch_of(student, list(layers), INDEX)
    theirs = batch_of(teacher, list(layers.values()), INDEX, grad=False)

    def summed(loss):
        return sum(loss(mine.taps[a], theirs.taps[b]) for a, b in layers.items())

    for distiller, expected in [
        (
            SimilarityPreserving(layers, 7.0),
            {"similarity": 7 * summed(similarity_preserving_loss)},
        ),
        (
            Relational(layers, 3.0, 5.0, weight=0.5),
            {
                "distance": 1.5 * summed(relational_distance_loss),
                "angle": 2.5 * summed(relational_angle_loss),
            },
        ),
        (
            Probabilistic(layers, 20.0),
            {"probabilistic": 20 * summed(probabilistic_transfer_loss)},
        ),
    ]:
        got = distiller(mine, theirs, DATA.train.y[INDEX])
        assert list(got) == list(expected)
        for term, value in expected.items():
            torch.testing.assert_close(got[term], value)
            assert value > 0


def test_the_weights_of_the_papers():
    assert build("similarity_preserving").weight == 3000
    assert (build("relational").distance, build("relational").angle) == (25, 50)
    assert build("probabilistic").weight == 30000
    assert build("correlation_congruence").weight == 100
    assert build("contrastive").weight == 0.8
    pool = [build(name).layers for name in METHODS]
    assert pool == [(("stage3", "stage3"),)] + 4 * [(("pool", "pool"),)]


PAIRS = {
    "cnn_tiny x resnet20": lambda: (model("cnn_tiny"), model("resnet20", 1), ["stage1", "pool"]),
    "mobilenetv2 x vgg8": lambda: (model("mobilenetv2"), model("vgg8", 1), ["stage2", "pool"]),
    "9 x 36 tokens": lambda: (TokenModel(4, 6), TokenModel(2, 10), ["block", "pool"]),
    "map x tokens": lambda: (model("cnn_tiny"), TokenModel(2, 10), {"stage2": "block"}),
}


@every_method
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_pair_of_models_works(name, pair, dtype):
    student, teacher, layers = PAIRS[pair]()
    layers = {layers[0]: layers[0]} if isinstance(layers, list) else layers
    distiller = prepared(build(name, layers=layers), student, teacher)
    got = forward(distiller, student, teacher, dtype=dtype)
    assert list(got) == METHODS[name] and not distiller.complete
    torch.stack(list(got.values())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    first = next(student.parameters())
    assert first.grad.isfinite().all() and first.grad.any()
    for parameter in distiller.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any()


@every_method
def test_training_with_it(name):
    student, teacher = model("cnn_tiny"), model("resnet8", seed=1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    distiller = Labels() + build(name, layers="pool")
    start = {}

    def watch(moment):
        if not start:
            start.update({key: p.detach().clone() for key, p in distiller.named_parameters()})

    run = fit(student, DATA, distiller, teacher=teacher, callbacks=[watch], **SHORT)
    assert {"hard", *METHODS[name]} <= run.history.rows[-1].keys()
    assert all(np.isfinite(run.history.rows[-1][term]) for term in METHODS[name])
    moved = {key for key, p in distiller.named_parameters() if not torch.equal(p, start[key])}
    assert moved == start.keys() <= distiller.state_dict().keys()
    expected = {"correlation_congruence": 2, "contrastive": 4}.get(name, 0)
    assert len(moved) == expected
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["correlation_congruence", "contrastive", "relational"])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(name, tmp_path):
    teacher = model("resnet8", seed=1)

    def train(path, callbacks=()):
        student, distiller = model("cnn_tiny"), SoftTargets() + build(name, layers="pool")
        run = fit(
            student, DATA, distiller, teacher=teacher, checkpoint=path, callbacks=callbacks, **SHORT
        )
        return {**student.state_dict(), **distiller.state_dict()}, run.history.rows

    def interrupt(moment):
        if (moment.epoch, moment.step) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    whole, rows = train(tmp_path / "whole.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped in epoch")
        train(tmp_path / "parts.pt", [interrupt])
    resumed, again = train(tmp_path / "parts.pt")
    assert again == rows and whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@every_method
def test_terms_stand_beside_those_of_other_methods(name):
    student, teacher = model("cnn_tiny"), model("resnet8", seed=1)
    both = prepared(SoftTargets() + 0.5 * build(name, layers="pool"), student, teacher)
    assert list(forward(both, student, teacher)) == ["hard", "soft", *METHODS[name]]


@every_method
def test_kind_words(name):
    mine = Outputs(torch.zeros(8, 4), {"pool": torch.randn(8, 5)}, None, INDEX)
    with pytest.raises(ValueError, match=r"^teacher: .* needs a teacher"):
        build(name, layers="pool")(mine, None, DATA.train.y[INDEX])
    with pytest.raises(ValueError, match=r"^weight: -1"):
        build(name, weight=-1)
    with pytest.raises(ValueError, match="pol"):
        fit(
            model("cnn_tiny"),
            DATA,
            Labels() + build(name, layers="pol"),
            teacher=model("resnet8", seed=1),
            **SHORT,
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("relational", {"distance": -1}, "^distance: -1"),
        ("relational", {"angle": float("nan")}, "^angle: nan"),
        ("correlation_congruence", {"gamma": 0}, "^gamma: 0"),
        ("correlation_congruence", {"order": 0}, "^order: 0, expected a whole number"),
        ("correlation_congruence", {"dimension": 2.5}, "^dimension: 2.5"),
        ("contrastive", {"negatives": 0}, "^negatives: 0, expected a whole number"),
        ("contrastive", {"dimension": True}, "^dimension: True"),
        ("contrastive", {"temperature": 0}, "^temperature: 0"),
        ("contrastive", {"momentum": 1.5}, "^momentum: 1.5"),
        ("contrastive", {"layers": ["pool", "stage1"]}, "^layers: 2 pairs came, expected one"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_what_counts_nothing_is_not_computed():
    student, teacher = model("cnn_tiny"), model("resnet8", seed=1)
    assert list(forward(Relational(angle=0.0), student, teacher)) == ["distance"]
    assert list(forward(Relational(distance=0.0), student, teacher)) == ["angle"]
    pair = torch.tensor([1, 2])
    assert forward(Relational(angle=0.0), student, teacher, pair)["distance"].isfinite()


# ---- correlation congruence ---------------------------------------------------------------------


def test_correlations_of_the_embeddings():
    student, teacher = model("cnn_tiny"), model("resnet8", seed=1)
    layers = {"pool": "pool", "stage3": "stage1"}
    distiller = CorrelationCongruence(layers, 3.0, gamma=0.7, order=3, dimension=10)
    prepared(distiller, student, teacher)
    mine = batch_of(student, list(layers), INDEX).taps
    theirs = batch_of(teacher, list(layers.values()), INDEX).taps
    expected = 0.0
    for (a, b), embed, project in zip(
        layers.items(), distiller.embeddings, distiller.projections, strict=True
    ):
        rows, wanted = mine[a].flatten(1), theirs[b].flatten(1)
        assert embed.weight.shape == (10, rows.shape[1])
        assert project.weight.shape == (10, wanted.shape[1])
        expected += 3 * correlation_congruence_loss(
            rows @ embed.weight.mT + embed.bias, wanted @ project.weight.mT, 0.7, 3
        )
    torch.testing.assert_close(forward(distiller, student, teacher)["correlation"], expected)


@pytest.mark.parametrize(("dimension", "error"), [(64, 1e-5), (200, 1e-5), (48, 0.3)])
def test_the_teachers_projection_keeps_its_cosines(dimension, error):
    student, teacher = model("cnn_tiny"), model("resnet8", seed=1)
    distiller = prepared(CorrelationCongruence(dimension=dimension), student, teacher)
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    projected = distiller.projections[0](rows)
    assert projected.shape == (20, dimension)
    cosines, kept = (
        torch.nn.functional.cosine_similarity(r[:, None], r[None], dim=-1)
        for r in (rows, projected)
    )
    assert (cosines - kept).abs().max() < error
    assert not list(distiller.projections.parameters())
    assert "projections.0.weight" in distiller.state_dict()


# ---- contrastive ---------------------------------------------------------------------------------


def contrast(train=DATA.train, **options):
    student, teacher = model("cnn_tiny"), model("resnet8", seed=1)
    options = {"negatives": 20, "dimension": 16} | options
    return prepared(Contrastive(**options), student, teacher, train), student, teacher


def embeddings(distiller, student, teacher, index=INDEX):
    """Both sides' embeddings of unit length, by hand."""
    sides = []
    for net, layer in (
        (student, distiller.student_embedding),
        (teacher, distiller.teacher_embedding),
    ):
        rows = layer(batch_of(net, ["pool"], index).taps["pool"])
        sides.append((rows / rows.norm(dim=1, keepdim=True)).detach())
    return sides


def test_contrastive_term_is_both_halves_of_the_loss():
    distiller, student, teacher = contrast(weight=0.3, temperature=0.2)
    mine, theirs = embeddings(distiller, student, teacher)
    torch.manual_seed(5)
    negatives = distiller.draw(INDEX)
    student_half = contrastive_loss(mine, distiller.teacher_bank, INDEX, negatives, 0.2)
    teacher_half = contrastive_loss(theirs, distiller.student_bank, INDEX, negatives, 0.2)
    torch.manual_seed(5)
    value = forward(distiller, student, teacher)["contrastive"]
    torch.testing.assert_close(value, 0.3 * (student_half + teacher_half))
    assert not torch.isclose(student_half, teacher_half, rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_the_batchs_rows_of_the_banks_move_and_no_others(momentum):
    distiller, student, teacher = contrast(momentum=momentum)
    before = {side: getattr(distiller, f"{side}_bank").clone() for side in ("student", "teacher")}
    new = dict(zip(("student", "teacher"), embeddings(distiller, student, teacher), strict=True))
    forward(distiller, student, teacher)
    for side, old in before.items():
        bank = getattr(distiller, f"{side}_bank")
        rows = momentum * old[INDEX] + (1 - momentum) * new[side]
        torch.testing.assert_close(bank[INDEX], rows / rows.norm(dim=1, keepdim=True))
        others = torch.ones(len(bank), dtype=torch.bool)
        others[INDEX] = False
        assert torch.equal(bank[others], old[others])
        assert ((bank[INDEX] - old[INDEX]).abs().amax(1) > 1e-3).all() == (momentum < 1)
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(len(bank)))
        assert not bank.requires_grad and bank.shape == (48, 16)
    assert not torch.allclose(distiller.student_bank, distiller.teacher_bank)


def test_the_graph_outlives_the_update_of_the_banks():
    distiller, student, teacher = contrast()
    value = forward(distiller, student, teacher)["contrastive"]
    forward(distiller, student, teacher)
    value.backward()
    assert distiller.student_embedding.weight.grad.any()
    assert distiller.teacher_embedding.weight.grad.any()


def test_measuring_does_not_change_the_banks():
    distiller, student, teacher = contrast()
    before = distiller.student_bank.clone()
    forward(distiller.eval(), student, teacher)
    assert torch.equal(distiller.student_bank, before)


def test_negatives_are_other_classes_evenly():
    distiller, *_ = contrast()
    labels = DATA.train.y
    index = torch.arange(48)
    counts = torch.zeros(48, 48)
    for _ in range(300):
        drawn = distiller.draw(index)
        assert drawn.shape == (48, 20) and (labels[drawn] != labels[:, None]).all()
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float32))
    allowed = labels[:, None] != labels[None]
    expected = 300 * 20 / 36
    assert ((counts > 0) == allowed).all()
    assert (counts[allowed] - expected).abs().max() < 6 * expected**0.5  # Poisson: 6 deviations
    assert (counts.sum(0) / counts.sum() * 48 - 1).abs().max() < 0.1


@pytest.mark.parametrize("other_classes", [False, True])
def test_any_other_image_is_a_negative_where_classes_do_not_count(other_classes):
    labels = DATA.train.y if not other_classes else torch.full((48,), -1)
    distiller, *_ = contrast(Split(DATA.train.x, labels), other_classes=other_classes)
    index = torch.arange(48)
    drawn = torch.cat([distiller.draw(index) for _ in range(100)], dim=1)
    assert (drawn != index[:, None]).all()
    assert all(len(row.unique()) == 47 for row in drawn)


def test_unlabelled_images_among_labelled_ones():
    labels = DATA.train.y.clone()
    labels[::3] = -1
    distiller, *_ = contrast(Split(DATA.train.x, labels))
    index = torch.arange(48)
    drawn = torch.cat([distiller.draw(index) for _ in range(100)], dim=1)
    assert (drawn != index[:, None]).all()
    for own, row in zip(labels, drawn, strict=True):
        allowed = 47 if own < 0 else int((labels != own).sum())
        assert len(row.unique()) == allowed
        assert own < 0 or (labels[row] != own).all()


def test_there_are_at_most_as_many_negatives_as_images_to_draw_from():
    distiller, *_ = contrast(negatives=16384)
    assert distiller.draw(INDEX).shape == (8, 36)
    uneven = Split(DATA.train.x, torch.where(torch.arange(48) < 30, 0, 1))
    assert contrast(uneven, negatives=16384)[0].draw(INDEX).shape == (8, 18)
    assert contrast(other_classes=False, negatives=16384)[0].draw(INDEX).shape == (8, 47)
    one_class = Split(DATA.train.x, torch.zeros(48, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^train: 48 images, all of one class"):
        contrast(one_class)
    assert contrast(one_class, other_classes=False)[0].draw(INDEX).shape == (8, 20)


def test_draws_repeat_with_the_seed():
    distiller, *_ = contrast()
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(distiller.draw(INDEX))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_each_run_begins_with_fresh_banks():
    distiller, student, teacher = contrast()
    first = distiller.student_bank.clone()
    forward(distiller, student, teacher)
    prepared(distiller, student, teacher)
    assert torch.equal(distiller.student_bank, first)
    with torch.no_grad():
        distiller.prepare(student, teacher, DATA.train)
    assert not torch.equal(distiller.student_bank, first)
    layers = {f"{s}_embedding.{p}" for s in ("student", "teacher") for p in ("weight", "bias")}
    assert distiller.state_dict().keys() == {"student_bank", "teacher_bank"} | layers


def test_without_an_index_there_is_no_memory():
    distiller, student, teacher = contrast()
    mine = batch_of(student, ["pool"], INDEX)
    theirs = batch_of(teacher, ["pool"], INDEX, grad=False)
    with pytest.raises(ValueError, match=r"^student.index: None came, expected int64 \[B\]"):
        distiller(Outputs(mine.logits, mine.taps), theirs, DATA.train.y[INDEX])


def test_contrastive_learns_to_tell_images_apart():
    """How often an image is nearer to itself than to one of another class, across the models."""
    distiller, student, teacher = contrast(negatives=36)
    index, apart = torch.arange(48), DATA.train.y[:, None] != DATA.train.y

    def told_apart():
        mine, theirs = embeddings(distiller, student.eval(), teacher, index)
        cosines = mine @ theirs.mT
        return float((cosines.diagonal()[:, None] > cosines)[apart].float().mean())

    assert 0.4 < told_apart() < 0.6
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        forward(distiller, student.train(), teacher, index)["contrastive"].backward()
        optimizer.step()
    assert told_apart() > 0.85
