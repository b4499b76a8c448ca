"""Feature methods: losses times weights, any pair of models, what trains with the student."""

import copy
import re
import signal
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdlab import losses
from kdlab.datasets import Split, from_arrays
from kdlab.distillers import (
    ActivationBoundary,
    AttentionTransfer,
    ChannelWise,
    FactorTransfer,
    Flow,
    Hints,
    Labels,
    NeuronSelectivity,
    Outputs,
    Overhaul,
    Review,
    SoftTargets,
    Variational,
    build,
    factor_transfer,
    review,
)
from kdlab.distillers.adapters import as_map, match_size
from kdlab.distillers.connectors import check_places, deepest_first
from kdlab.distillers.factor_transfer import teacher_maps, trained_autoencoder
from kdlab.distillers.overhaul import measured_margin, norm_before
from kdlab.models import Taps, build_for
from kdlab.training import fit

STAGES = ("stage1", "stage2", "stage3")
METHODS = {  # file: its term, default layers, default weight
    "hints": ("hint", STAGES[1:2], 100),
    "attention_transfer": ("attention", STAGES, 1000),
    "flow": ("flow", STAGES, 50),
    "neuron_selectivity": ("selectivity", STAGES, 50),
    "variational": ("variational", STAGES, 1),
    "channel_wise": ("channel", STAGES[1:2], 50),
    "activation_boundary": ("boundary", STAGES, 0.003),
    "factor_transfer": ("factor", STAGES[2:], 500),
    "overhaul": ("overhaul", STAGES, 0.001),
    "review": ("review", STAGES, 5),
}
TRAINED = sorted(METHODS.keys() - {"attention_transfer", "neuron_selectivity"})
BEFORE = ["activation_boundary", "overhaul"]
COMPARES_PLACES = ["attention_transfer", "neuron_selectivity", "channel_wise"]
zipped = partial(zip, strict=True)
every_method = pytest.mark.parametrize("name", METHODS)


def make_data(n=48, size=16, classes=4):
    rng = np.random.default_rng(0)
    patterns = rng.random((classes, size, size, 1))
    y = np.arange(n) % classes
    x = (0.6 * patterns[y] + 0.4 * rng.random((n, size, size, 1))).astype(np.float32)
    return from_arrays(x, y, x[:8], y[:8], x_val=x[:8], y_val=y[:8])


DATA = make_data()


class Tokens(nn.Module):
    """A little transformer's forms: tokens [B, N, d], an embedding [B, d], logits."""

    def __init__(self, side=4, width=6):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 16 // side, 16 // side)
        self.tokens = nn.Identity()
        self.mean = nn.Identity()
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        tokens = self.tokens(self.patches(x).flatten(2).mT)
        return self.head(self.mean(tokens.mean(1)))


def model(name, seed=0):
    if name.startswith("tokens"):
        torch.manual_seed(seed)
        return Tokens(side=int(name[-1]), width=4 + int(name[-1]))
    return build_for(name, DATA.shape, 4, seed=seed)


def small(name, layers=None, **options):
    """A method with a paraphraser that takes no time."""
    if name == "factor_transfer":
        options["epochs"] = 1
    if layers is not None:
        options["layers"] = layers
    return build(name, **options)


def prepared(method, student, teacher, train=DATA.train):
    torch.manual_seed(1)
    with torch.no_grad():
        method.prepare(student.eval(), teacher.eval(), train)
    return method


def outputs(net, taps, images=DATA.train.x[:8], grad=True):
    with Taps(net, taps) as read, torch.set_grad_enabled(grad):
        logits = net(images)
        return Outputs(logits, {path: read[path] for path in taps}, images)


def ask(method, student, teacher, images=DATA.train.x[:8]):
    said = outputs(teacher, method.teacher_taps, images, grad=False)
    return method(outputs(student, method.student_taps, images), said, DATA.train.y[: len(images)])


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


# ---- a term is a loss times a weight ---------------------------------------------------------


def expected(name, method, s, t):
    """The term without its weight, from the tensors of the pairs."""
    if name == "hints":
        triples = zipped(method.regressors, s, t)
        return sum(losses.hint_loss(regressor(a), b) for regressor, a, b in triples)
    if name == "attention_transfer":
        return sum(losses.attention_transfer_loss(*match_size(a, b)) for a, b in zipped(s, t))
    if name == "neuron_selectivity":
        return sum(losses.neuron_selectivity_loss(*match_size(a, b)) for a, b in zipped(s, t))
    if name == "flow":
        s = [f(x) for f, x in zipped(method.regressors, s)]
        steps = [(0, 1), (1, 2)]
        return sum(
            losses.flow_loss(match_size(s[i], s[k]), match_size(t[i], t[k])) for i, k in steps
        )
    if name == "variational":
        total = 0
        for predict, a, b in zipped(method.predictions, s, t):
            a, b = match_size(a, b)
            variance = F.softplus(predict.raw_variance) + 1e-5
            total += losses.variational_information_loss(predict.mean(a), b, variance)
        return total
    if name == "channel_wise":
        total = 0
        for regressor, a, b in zipped(method.regressors, s, t):
            a, b = match_size(a, b)
            total += losses.channel_wise_loss(regressor(a), b, 4.0)
        return total
    if name in BEFORE:
        values = []
        for number, (connect, a, b) in enumerate(zipped(method.connectors, s, t)):
            a, b = match_size(a, b)
            values.append(
                losses.activation_boundary_loss(connect(a), b, 1.0)
                if name == "activation_boundary"
                else losses.overhaul_loss(connect(a), b, method.get_buffer(f"margin{number}"))
            )
        return values[0] / 4 + values[1] / 2 + values[2]
    if name == "factor_transfer":
        total = 0
        for translate, paraphrase, a, b in zipped(method.translators, method.paraphrasers, s, t):
            total += losses.factor_transfer_loss(*match_size(translate(a), paraphrase(b)))
        return total
    values, deeper = [], None
    for level in (2, 1, 0):
        fusion, a, b = method.fusions[level], s[level], t[level]
        guess, deeper = fusion(a, deeper, b.shape[2:])
        values.append(losses.hierarchical_context_loss(guess, b))
    return sum(values)


@every_method
@pytest.mark.parametrize("pair", [("cnn_tiny", "resnet8"), ("resnet8", "cnn_tiny")], ids=str)
def test_a_term_is_its_loss_times_its_weight(name, pair):
    student, teacher = (model(x, seed) for seed, x in enumerate(pair))
    term, layers, weight = METHODS[name]
    method = small(name)
    assert method.weight == weight and [path for path, _ in method.layers] == list(layers)
    method = prepared(small(name, STAGES), student, teacher)
    assert not method.complete and method.needs_teacher and not method.needs_only_logits
    got = ask(method.eval(), student, teacher)
    assert list(got) == [term]
    s = [outputs(student, method.student_taps).taps[tap] for tap in method.student_taps]
    t = [outputs(teacher, method.teacher_taps).taps[tap] for tap in method.teacher_taps]
    want = weight * expected(name, method, s, t)
    torch.testing.assert_close(got[term], want.float())
    assert float(got[term].detach()) > 0
    slopes = (
        torch.autograd.grad(x, list(student.parameters()), materialize_grads=True)
        for x in (got[term], want)
    )
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5 * weight)
    method.weight = 2 * weight
    torch.testing.assert_close(ask(method, student, teacher)[term], 2 * got[term])


def test_the_deepest_layer_counts_most():
    values = [torch.tensor(float(v)) for v in (100, 10, 1)]
    assert float(deepest_first(values)) == 1 + 10 / 2 + 100 / 4


def test_options_reach_the_losses():
    student, teacher = model("cnn_tiny"), model("cnn_tiny", 1)

    def term(method):
        (value,) = ask(prepared(method, student, teacher), student, teacher).values()
        return float(value.detach())

    for one, other in [
        (AttentionTransfer(), AttentionTransfer(norm="paper")),
        (AttentionTransfer(), AttentionTransfer(power=3)),
        (ChannelWise(), ChannelWise(temperature=2.0)),
        (ActivationBoundary(), ActivationBoundary(margin=0.1)),
        (Variational(), Variational(initial_variance=1.0)),
    ]:
        assert term(one) != pytest.approx(term(other), rel=1e-2)
    maps = outputs(student, STAGES).taps.values(), outputs(teacher, STAGES).taps.values()
    values = [losses.attention_transfer_loss(a, b, 3, norm="paper") for a, b in zipped(*maps)]
    method = AttentionTransfer(weight=1, norm="paper", power=3)
    assert term(method) == pytest.approx(float(sum(values).detach()))


# ---- any pair of models ----------------------------------------------------------------------

PAIRS = [
    ("cnn_tiny", "resnet20"),
    ("vgg8", "mobilenetv2"),
    ("mobilenetv2", "cnn"),
    ("wrn_16_1", "vgg8"),
]


@every_method
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_any_pair_of_models_works(name, pair):
    student, teacher = model(pair[0]), model(pair[1], 1)
    method = prepared(small(name), student, teacher)
    (value,) = ask(method, student, teacher).values()
    value.backward()
    assert value.isfinite() and next(student.parameters()).grad.any()
    assert all(p.grad is None for p in teacher.parameters())


@every_method
@pytest.mark.parametrize(
    ("pair", "layers"),
    [
        (("tokens4", "tokens8"), {"tokens": "tokens"}),
        (("tokens8", "tokens4"), {"tokens": "tokens"}),
        (("cnn_tiny", "tokens4"), {"stage1": "tokens"}),
        (("tokens4", "resnet8"), {"tokens": "stage2"}),
        (("cnn_tiny", "tokens4"), {"pool": "mean"}),
    ],
    ids=str,
)
def test_tokens_and_embeddings_work_or_are_refused_by_name(name, pair, layers):
    student, teacher = model(pair[0]), model(pair[1], 1)
    if name == "flow":
        layers = {**layers, ("stage2" if "stage1" in layers else "head"): "head"}
    method = small(name, layers)
    if name in COMPARES_PLACES and "pool" in layers:
        with says("layers: the student's 'pool'", "[2, 24, 1, 1]", "'mean'", "one place in common"):
            prepared(method, student, teacher)
        return
    prepared(method, student, teacher)
    (value,) = ask(method, student, teacher).values()
    value.backward()
    assert value.isfinite() and next(student.parameters()).grad.any()


class Odd(nn.Module):
    """Gives five dimensions in the middle."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Unflatten(1, (1, 1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))

    def forward(self, x):
        return self.head(self.inner(x))


@every_method
def test_what_cannot_be_paired_names_layers_and_shapes(name):
    layers = {"stage1": "inner"} if name != "flow" else {"stage1": "inner", "stage2": "head"}
    with says("layers: the student's 'stage1", "[2, 8, 8, 8]", "'inner'", "[2, 1, 1, 16, 16]"):
        prepared(small(name, layers), model("cnn_tiny"), Odd())


@every_method
def test_a_wrong_path_no_teacher_and_a_bad_weight_are_refused(name):
    student = model("cnn_tiny")
    layers = ("stage1", "stag2")
    with says("paths: the model has no layer 'stag2' (did you mean 'stage2'"):
        prepared(small(name, layers), student, student)
    with says("teacher: "):
        small(name).prepare(student, None, DATA.train)
    method = prepared(small(name), student, model("cnn_tiny", 1))
    with says(f"teacher: {type(method).__name__} needs a teacher"):
        method(outputs(student, method.student_taps), None, DATA.train.y[:8])
    with says("weight: -1"):
        small(name, weight=-1)


def test_other_options_are_refused_by_name():
    with says("layers: 'stage2', expected at least two"):
        Flow("stage2")
    with says("initial_variance: "):
        Variational(initial_variance=0)
    with says("rate: 0, expected"):
        FactorTransfer(rate=0)
    with says("epochs: 0, expected"):
        FactorTransfer(epochs=0)


@pytest.mark.parametrize("name", COMPARES_PLACES)
def test_a_method_that_has_no_places_to_compare_says_so(name):
    student = model("cnn_tiny")
    small_images = Split(DATA.train.x[..., :8, :8], DATA.train.y)
    with says("layers: the student's 'stage3' gives [2, 24, 1, 1]", "take an earlier layer"):
        prepared(small(name, "stage3"), student, student, small_images)
    prepared(small(name, ("stage1", "stage3")), student, student, small_images)


@pytest.mark.parametrize("sizes", [((4, 4), (1, 1)), ((1, 1), (4, 4)), ((4, 1), (1, 4))])
def test_places_count_where_both_networks_have_them(sizes):
    mine, theirs = (torch.Size((2, 3, *size)) for size in sizes)
    with says("layers: the student's 'a' gives", "the teacher's 'b'", "place in common"):
        check_places([("a", "b")], [(mine, theirs)])


# ---- what trains with the student ------------------------------------------------------------


def run(method, student_name="cnn_tiny", teacher_name="cnn", epochs=2, **options):
    student, teacher = model(student_name), model(teacher_name, 1)
    options = {"batch_size": 16, "lr": 0.01, "device": "cpu", "precision": "fp32", **options}
    return fit(student, DATA, method, teacher=teacher, epochs=epochs, **options)


@every_method
def test_what_is_owned_moves_in_training_is_saved_and_is_logged_by_name(name):
    """Defect 4: variances that no optimizer knew."""
    method = small(name)
    start = {}
    term = METHODS[name][0]

    def first(moment):
        if not start:
            start.update(copy.deepcopy(dict(method.state_dict())))

    done = run(Labels() + method, callbacks=[first])
    rows = done.history.rows if hasattr(done.history, "rows") else done.history
    assert {"hard", term} <= set(rows[-1]) and np.isfinite(rows[-1][term])
    state = method.state_dict()
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    assert trained <= set(state) and bool(trained) == (name in TRAINED)
    for key in state:
        fixed = "paraphrasers" in key or "margin" in key
        if key in trained or fixed:
            assert torch.equal(state[key], start[key]) == fixed, key


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_parameter_gets_a_gradient(name):
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(small(name), student, teacher)
    (value,) = ask(method, student, teacher).values()
    value.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), key
        else:
            assert key.startswith("paraphrasers.") and parameter.grad is None


@every_method
def test_each_run_starts_anew(name):
    method = SoftTargets() + small(name)
    first, second = (run(method, epochs=1) for _ in range(2))
    for a, b in zipped(first.model.state_dict().values(), second.model.state_dict().values()):
        assert torch.equal(a, b)


@every_method
def test_an_interrupted_run_goes_on_bit_for_bit(name, tmp_path):
    def stop(moment):
        if (moment.epoch, moment.step) == (1, 2):
            signal.raise_signal(signal.SIGINT)

    whole = run(Labels() + small(name), epochs=2)
    path = tmp_path / "run.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped in epoch")
        half = run(Labels() + small(name), epochs=2, checkpoint=path, callbacks=[stop])
    assert half.interrupted
    resumed = run(Labels() + small(name), epochs=2, checkpoint=path)
    for a, b in zipped(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(a, b)


@every_method
def test_layers_in_half_precision_are_read_in_single(name):
    """What a forward pass under bf16 autocast leaves in the taps."""
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(small(name), student, teacher)
    mine, theirs = outputs(student, method.student_taps), outputs(teacher, method.teacher_taps)
    half = [Outputs(x.logits, {k: v.bfloat16() for k, v in x.taps.items()}) for x in (mine, theirs)]
    (value,) = method(*half, DATA.train.y[:8]).values()
    (exact,) = method(mine, theirs, DATA.train.y[:8]).values()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0)


# ---- one by one ------------------------------------------------------------------------------


def test_hints_can_be_perfect():
    """The regressor can undo a rotation of the channels."""
    teacher = model("cnn_tiny")
    method = prepared(Hints(), teacher, teacher)
    said = outputs(teacher, ("stage2",), grad=False)
    with torch.no_grad():
        method.regressors[0][-1].weight.copy_(torch.eye(16)[:, :, None, None])
        method.regressors[0][-1].bias.zero_()
    assert not method(said, said, DATA.train.y[:8])["hint"].any()


def test_flow_and_channel_wise_add_nothing_where_the_channels_agree():
    student, teacher = model("cnn_tiny"), model("cnn_tiny", 1)
    for method in (Flow(), ChannelWise()):
        assert not list(prepared(method, student, teacher).parameters())
        said = outputs(teacher, method.teacher_taps)
        (value,) = method(said, said, DATA.train.y[:8]).values()
        assert abs(float(value.detach())) < 1e-6
    mixed = prepared(Flow(), model("cnn_tiny"), model("resnet8"))
    assert [type(part) for part in mixed.regressors] == [nn.Conv2d] * 3
    assert all(part.bias is None for part in mixed.regressors)  # G_S = W₁ G W₂ᵀ has no constant


def test_variances_start_where_they_are_told_and_learn_what_cannot_be_predicted():
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(Variational("stage2", initial_variance=2.0), student, teacher)
    variance = method.predictions[0](torch.zeros(1, 16, 2, 2))[1]
    torch.testing.assert_close(variance, torch.full((24,), 2.0))
    mine, theirs = (outputs(x, ("stage2",), grad=False) for x in (student, teacher))
    optimizer = torch.optim.Adam([method.predictions[0].raw_variance], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        method(mine, theirs, DATA.train.y[:8])["variational"].backward()
        optimizer.step()
    mean, variance = method.predictions[0](mine.taps["stage2"])
    errors = (theirs.taps["stage2"] - mean).square().mean((0, 2, 3))
    torch.testing.assert_close(variance, errors, rtol=0.05, atol=0.01)
    method.predictions[0].raw_variance.data.fill_(-1e3)  # its softplus is 0
    assert method.predictions[0](mine.taps["stage2"])[1].tolist() == pytest.approx([1e-5] * 24)


@pytest.mark.parametrize("name", BEFORE)
def test_features_are_read_before_the_activation(name):
    student, teacher = model("cnn_tiny"), model("resnet8", 1)
    both = Labels() + small(name)
    assert both.teacher_taps == STAGES and not both.needs_only_logits
    prepared(both, student, teacher)
    assert len(both.student_taps) == len(both.teacher_taps) == 3
    assert all(tap.endswith(":input") for tap in (*both.student_taps, *both.teacher_taps))
    for net, taps in ((student, both.student_taps), (teacher, both.teacher_taps)):
        read = outputs(net, [*taps, *STAGES]).taps
        for tap, stage in zipped(taps, STAGES):
            torch.testing.assert_close(read[tap].relu(), read[stage])
            assert (read[tap] < 0).any()
    without = prepared(small(name), model("mobilenetv2"), model("mobilenetv2", 1))
    assert without.student_taps == without.teacher_taps == STAGES  # linear bottlenecks


def trained_teacher(name):
    return run(Labels(), name, epochs=4).model


def test_margins_come_from_the_norm_where_one_feeds_the_activation():
    teacher = trained_teacher("cnn_tiny")
    method = prepared(Overhaul(), model("cnn_tiny"), teacher)
    for number, stage in enumerate((teacher.stage1, teacher.stage2, teacher.stage3)):
        norm = next(part for part in stage if isinstance(part, nn.BatchNorm2d))
        margin = method.get_buffer(f"margin{number}")
        torch.testing.assert_close(margin, losses.batch_norm_margin(norm))
        assert (margin < 0).all()


def test_margins_are_measured_behind_a_shortcut_and_without_affine_norms():
    teacher = trained_teacher("resnet8")
    method = prepared(Overhaul(), model("cnn_tiny"), teacher)
    maps = outputs(teacher, method.teacher_taps, DATA.train.x, grad=False).taps.values()
    for number, values in enumerate(maps):
        by_hand = torch.stack(
            [c[c < 0].mean() if (c < 0).any() else torch.zeros(()) for c in values.transpose(0, 1)]
        )
        torch.testing.assert_close(method.get_buffer(f"margin{number}"), by_hand)
    plain = model("cnn_tiny")
    plain.stage2[2] = nn.BatchNorm2d(16, affine=False)
    assert prepared(Overhaul("stage2"), plain, plain).margin0.shape == (16,)


def test_measured_and_computed_margins_agree_on_normal_features():
    norm = nn.BatchNorm2d(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2, 0.5]), torch.tensor([0.0, 1, -1])
    net = nn.Sequential(norm, nn.ReLU()).eval()
    images = torch.randn(600, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = measured_margin(net, "1:input", Split(images, torch.zeros(600, dtype=torch.int64)))
    torch.testing.assert_close(found, losses.batch_norm_margin(norm), rtol=0.02, atol=0)


def test_only_what_is_negative_counts_for_a_measured_margin():
    images = torch.zeros(300, 2, 8, 8)
    images[-1, 0] = -2.0  # in the second batch
    images[1] = 3.0
    train = Split(images, torch.zeros(300, dtype=torch.int64))
    found = measured_margin(nn.Sequential(nn.ReLU()), "0:input", train)
    assert found.tolist() == [-2.0, 0.0]


def test_a_norm_that_does_not_feed_an_activation_says_nothing_of_it():
    norm, last = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    net = nn.Sequential(norm, last, nn.ReLU())
    assert norm_before(net, "1") is None and norm_before(net, "2:input") is None
    assert norm_before(nn.Sequential(last, norm, nn.ReLU()), "2:input") is norm
    assert norm_before(nn.Sequential(nn.ReLU(), norm), "0:input") is None


def test_connectors_standardize_each_channel():
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(Overhaul("stage2"), student, teacher).train()
    (features,) = outputs(student, method.student_taps).taps.values()
    out = method.connectors[0](features)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), torch.ones(24), atol=0.05, rtol=0)


def test_a_paraphraser_learns_to_reconstruct_and_is_then_frozen():
    teacher = trained_teacher("cnn_tiny")
    maps = teacher_maps(teacher, "stage2", DATA.train)
    assert maps.shape == (48, 16, 4, 4) and not maps.requires_grad
    torch.manual_seed(0)
    encode, decode = trained_autoencoder(maps, 8, epochs=120)
    with torch.no_grad():
        factors = encode(maps)
        error = (decode(factors) - maps).square().mean()
    assert factors.shape == (48, 8, 4, 4) and isinstance(decode[-1], nn.ConvTranspose2d)
    assert error < 0.75 * (maps - maps.mean(0)).square().mean()
    method = prepared(small("factor_transfer", "stage2", rate=0.25), model("cnn_tiny"), teacher)
    assert not any(p.requires_grad for p in method.paraphrasers.parameters())
    assert method.translators[0][-2].out_channels == 4
    least = prepared(small("factor_transfer", "stage2", rate=0.01), model("cnn_tiny"), teacher)
    assert least.translators[0][-2].out_channels == 1


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_factors_do_not_depend_on_the_scale_of_a_layer(scale):
    maps = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    parts = []
    for values in (maps, scale * maps):
        torch.manual_seed(0)
        encode, decode = trained_autoencoder(values, 2, epochs=3)
        parts.append((encode(values), decode(encode(values))))
    torch.testing.assert_close(parts[1][0], parts[0][0])
    torch.testing.assert_close(parts[1][1], scale * parts[0][1])


def test_a_paraphraser_sees_a_random_part_of_many_images(monkeypatch):
    monkeypatch.setattr(factor_transfer, "IMAGES", 10)
    train = Split(torch.arange(48.0).view(48, 1, 1, 1), torch.zeros(48, dtype=torch.int64))
    net = nn.Sequential(nn.Identity())
    first, second = (teacher_maps(net, "0", train).flatten().tolist() for _ in range(2))
    assert len(set(first)) == len(first) == 10 == len(second) and set(first) != set(second)


def test_an_untrained_paraphraser_is_another(monkeypatch):
    """`prepare` trains it, although it runs without gradients."""
    student, teacher = model("cnn_tiny"), model("cnn", 1)

    def weights(epochs):
        method = prepared(FactorTransfer(epochs=epochs), student, teacher)
        return method.paraphrasers[0][0].weight

    once, twice = weights(1), weights(2)
    assert not torch.equal(once, twice) and torch.equal(once, weights(1))


def test_review_lets_shallow_layers_of_the_teacher_teach_deep_ones_of_the_student():
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(Review(), student, teacher).eval()
    mine, theirs = (outputs(x, STAGES) for x in (student, teacher))
    features = {k: v.detach().requires_grad_() for k, v in mine.taps.items()}
    maps = [as_map(features[stage]) for stage in STAGES]
    guess3, deeper = method.fusions[2](maps[2], None, theirs.taps["stage3"].shape[2:])
    guess2, deeper = method.fusions[1](maps[1], deeper, theirs.taps["stage2"].shape[2:])
    guess1, _ = method.fusions[0](maps[0], deeper, theirs.taps["stage1"].shape[2:])
    reached = {}
    for guess, name in ((guess1, "stage1"), (guess2, "stage2"), (guess3, "stage3")):
        slopes = torch.autograd.grad(
            guess.square().sum(), list(features.values()), allow_unused=True, retain_graph=True
        )
        reached[name] = [slope is not None and bool(slope.any()) for slope in slopes]
        assert guess.shape == theirs.taps[name].shape
    assert reached == {
        "stage1": [True, True, True],
        "stage2": [False, True, True],
        "stage3": [False, False, True],
    }


def test_fusion_is_a_weighted_sum_with_two_learned_maps():
    fusion = prepared(Review(), model("cnn_tiny"), model("cnn", 1)).eval().fusions[0]
    features, deeper = torch.randn(2, 8, 8, 8), torch.randn(2, 24, 4, 4)
    with torch.no_grad():
        guess, mixed = fusion(features, deeper, torch.Size((8, 8)))
        own, other = fusion.enter(features), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
        share = torch.sigmoid(fusion.attend(torch.cat([own, other], 1)))
        torch.testing.assert_close(mixed, share[:, :1] * own + share[:, 1:] * other)
        torch.testing.assert_close(guess, fusion.leave(mixed))


def test_layers_are_fused_in_a_space_of_limited_width(monkeypatch):
    monkeypatch.setattr(review, "MOST_CHANNELS", 5)
    method = prepared(Review(), model("cnn_tiny"), model("cnn", 1))
    assert [fusion.enter[0].out_channels for fusion in method.fusions] == [5, 5, 5]


def test_no_places_are_no_trouble_beside_others():
    """On tiny images the deepest stage has one place: it teaches nothing, the others do."""
    student, teacher = model("cnn_tiny"), model("cnn_tiny", 1)
    train = Split(DATA.train.x[..., :8, :8], DATA.train.y)
    for cls in (AttentionTransfer, NeuronSelectivity):
        both, one = (cls(layers) for layers in (STAGES, STAGES[:2]))
        slopes = []
        for method in (both, one):
            prepared(method, student, teacher, train)
            (value,) = ask(method, student, teacher, train.x[:8]).values()
            weights = list(student.parameters())
            slopes.append(torch.autograd.grad(value, weights, materialize_grads=True))
        torch.testing.assert_close(*slopes)
