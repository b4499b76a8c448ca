"""Deep supervision, self-distillation and learned links: value and gradient against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from kdlab.datasets import Split
from kdlab.distillers import AttentionLinks, DeepSupervision, Outputs, SelfDistillation
from kdlab.models import ExitHead


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(z, y):
    """Its mean, and its gradient for the logits."""
    p, hot = softmax(z), np.eye(z.shape[1])[y]
    return -np.log(p[hot == 1]).mean(), (p - hot) / len(z)


def tempered_kl(z, t, temperature):
    """T² KL(softmax(t / T) ‖ softmax(z / T)), and its gradient for z."""
    p, q = softmax(t / temperature), softmax(z / temperature)
    value = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    return value, temperature * (q - p) / len(z)


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


def array(tensor):
    return tensor.detach().double().numpy()


Y = torch.arange(8) % 5


class Plain(nn.Module):
    """A head that hands its features on as logits."""

    def forward(self, features, mask=None):
        return features


@pytest.mark.parametrize("balance", ["equal", "loss", (0.5, 2.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("feature_weight", [0.0, 0.7])
def test_deep_supervision_is_its_formula_in_value_and_gradient(balance, alpha, feature_weight):
    method = DeepSupervision(
        {"a": "c", "b": "d"}, 1.5, 3.0, alpha, feature_weight=feature_weight, balance=balance
    )
    method.heads = nn.ModuleList([Plain(), Plain()])
    method.adapters = nn.ModuleList([nn.Identity(), nn.Identity()])
    exits = {"a": numbers(8, 5, seed=1), "b": numbers(8, 5, seed=2)}
    theirs = {"c": numbers(8, 5, seed=3), "d": numbers(8, 5, seed=4)}
    said = numbers(8, 5, seed=5)
    got = method(Outputs(numbers(8, 5), exits), Outputs(said, theirs), Y)
    torch.stack(list(got.values())).sum().backward()

    parts, slopes = [], []
    for z, t in zip(map(array, exits.values()), map(array, theirs.values()), strict=True):
        hard, hard_slope = cross_entropy(z, Y.numpy())
        soft, soft_slope = tempered_kl(z, array(said), 3.0)
        gap = feature_weight * ((z - t) ** 2).mean()
        parts.append([(1 - alpha) * hard, alpha * soft, gap])
        slopes.append(
            (1 - alpha) * hard_slope + alpha * soft_slope + feature_weight * 2 * (z - t) / z.size
        )
    parts = np.array(parts)
    weights = {"equal": np.ones(2), "loss": 2 * parts.sum(1) / parts.sum()}.get(str(balance))
    weights = np.array(balance) if weights is None else weights
    terms = dict(
        zip(("exit_hard", "exit_soft", "exit_feature"), 1.5 * weights @ parts, strict=True)
    )
    for name, used in (("exit_soft", alpha > 0), ("exit_feature", feature_weight > 0)):
        assert (name in got) == used
        terms = terms if used else {key: v for key, v in terms.items() if key != name}
    assert {key: float(v.detach()) for key, v in got.items()} == pytest.approx(terms)
    for tensor, weight, slope in zip(exits.values(), weights, slopes, strict=True):
        np.testing.assert_allclose(array(tensor.grad), 1.5 * weight * slope, atol=1e-9)
    assert all(t.grad is None for t in (said, *theirs.values()))
    measured = {key: float(v) for key, v in method.measures().items()}
    want = {"weight_a": weights[0], "weight_b": weights[1]} if balance == "loss" else {}
    assert measured == pytest.approx(want)


def test_layers_without_any_loss_weigh_alike():
    method = DeepSupervision(("a", "b"), balance="loss")
    weights = method._layer_weights(torch.zeros(2))
    assert weights.tolist() == [1, 1]
    assert method._layer_weights(torch.tensor([3.0, 1.0])).tolist() == [1.5, 0.5]


def test_self_distillation_is_its_formula_in_value_and_gradient():
    alpha, temperature, beta = 0.2, 2.0, 0.05
    method = SelfDistillation(("a", "b"), temperature, alpha, beta, embedding="deep")
    heads = [ExitHead((1, 6), 5, 6).double() for _ in range(2)]
    for head in heads:
        head.before = nn.Identity()
    method.heads = nn.ModuleList(heads)
    taps = {"a": numbers(8, 6, seed=1), "b": numbers(8, 6, seed=2), "deep": numbers(8, 6, seed=3)}
    own = numbers(8, 5, seed=4)
    got = method(Outputs(own, taps), None, Y)
    torch.stack(list(got.values())).sum().backward()

    hard, hard_slope = cross_entropy(array(own), Y.numpy())
    want = {"hard": (1 - alpha) * hard, "exit_hard": 0.0, "exit_soft": 0.0, "exit_feature": 0.0}
    np.testing.assert_allclose(array(own.grad), (1 - alpha) * hard_slope, atol=1e-9)
    for path, head in zip("ab", heads, strict=True):
        f, weight, bias = map(array, (taps[path], head.classifier.weight, head.classifier.bias))
        z = f @ weight.T + bias
        value, slope = cross_entropy(z, Y.numpy())
        soft, soft_slope = tempered_kl(z, array(own), temperature)
        gap = f - array(taps["deep"])
        want["exit_hard"] += (1 - alpha) * value
        want["exit_soft"] += alpha * soft
        want["exit_feature"] += beta * (gap**2).sum(1).mean()
        slope = ((1 - alpha) * slope + alpha * soft_slope) @ weight + 2 * beta * gap / len(f)
        np.testing.assert_allclose(array(taps[path].grad), slope, atol=1e-9)
    assert {key: float(v.detach()) for key, v in got.items()} == pytest.approx(want)
    assert taps["deep"].grad is None  # the deepest side teaches and is not taught


def links_by_hand(method, mine, theirs):
    """AFD in NumPy: the term and the links, batch norms in eval mode."""

    def project(module, x):
        linear, norm = module
        x = x @ array(linear.weight).T + array(linear.bias)
        x = (x - array(norm.running_mean)) / np.sqrt(array(norm.running_var) + norm.eps)
        return x * array(norm.weight) + array(norm.bias)

    def look(x, size):
        energy = (x**2).mean(1)
        rows, columns = energy.shape[1] // size[0], energy.shape[2] // size[1]
        energy = energy.reshape(len(x), size[0], rows, size[1], columns).mean((2, 4))
        return energy / np.sqrt((energy**2).sum((1, 2), keepdims=True))

    d, count = method.width, len(theirs)
    links = np.zeros((len(mine[0]), count, len(mine)))
    gaps = np.zeros_like(links)
    for t, their in enumerate(theirs):
        query = project(method.queries[t], their.mean((2, 3)))
        for s, my in enumerate(mine):
            key = np.maximum(project(method.keys[s], my.mean((2, 3))), 0)
            key = project(method.bilinear, key)[:, t * d : (t + 1) * d]
            place = array(method.query_places)[t] @ array(method.key_places)[s]
            links[:, t, s] = ((query * key).sum(1) + place) / np.sqrt(d)
            size = their.shape[2:]
            gaps[:, t, s] = ((look(my, size) - look(their, size)) ** 2).mean((1, 2))
    links = softmax(links)
    return method.weight * (links * gaps).sum((1, 2)).mean(), links


SHAPES = {"a": (3, 4, 4), "b": (5, 2, 2), "c": (4, 2, 2), "d": (4, 2, 2), "e": (6, 1, 1)}


class Shapes(nn.Module):
    """Layers that give maps of given shapes."""

    def __init__(self):
        super().__init__()
        for name in SHAPES:
            self.add_module(name, nn.Identity())

    def forward(self, x):
        for name, layer in self.named_children():
            layer(x.new_zeros(len(x), *SHAPES[name]))
        return x.flatten(1)[:, :4]


def links_method():
    torch.manual_seed(0)
    method = AttentionLinks(tuple("ab"), tuple("cde"), width=7)
    with torch.no_grad():
        method.prepare(Shapes(), Shapes(), Split(torch.zeros(2, 1, 4, 4), Y[:2]))
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    mine = {key: numbers(6, *SHAPES[key], seed=k) for k, key in enumerate("ab")}
    theirs = {key: numbers(6, *SHAPES[key], seed=3 + k) for k, key in enumerate("cde")}
    return method.double().eval(), mine, theirs


def test_learned_links_are_their_formula_in_value_and_gradient():
    method, mine, theirs = links_method()
    student, teacher = Outputs(Y[:6].double(), mine), Outputs(Y[:6].double(), theirs)
    (value,) = method(student, teacher, Y[:6]).values()
    m, t = [[array(x) for x in side.values()] for side in (mine, theirs)]
    want, links = links_by_hand(method, m, t)
    assert float(value.detach()) == pytest.approx(want)
    np.testing.assert_allclose(array(method.attention(student, teacher)), links)
    entropy = -(links * np.log(links)).sum(-1).mean() / np.log(2)
    assert float(method.measures()["link_entropy"]) == pytest.approx(entropy)
    value.backward()
    assert all(x.grad is None for x in theirs.values())
    for k, tensor in enumerate(mine.values()):
        step = np.random.default_rng(k).normal(size=tensor.shape)
        ends = []
        for sign in (1, -1):
            moved = list(m)
            moved[k] = m[k] + sign * 1e-5 * step
            ends.append(links_by_hand(method, moved, t)[0])
        slope = (ends[0] - ends[1]) / 2e-5
        assert float((array(tensor.grad) * step).sum()) == pytest.approx(slope, rel=1e-5)


def test_the_links_that_are_kept_are_a_slow_mean():
    method, mine, theirs = links_method()
    student, teacher = Outputs(Y[:6].double(), mine), Outputs(Y[:6].double(), theirs)
    method(student, teacher, Y[:6])
    assert method.links.eq(0.5).all()  # nothing is noted in eval mode
    method.train()
    now = method.attention(student, teacher).mean(0)
    method(student, teacher, Y[:6])
    torch.testing.assert_close(method.links, 0.95 * torch.full_like(now, 0.5) + 0.05 * now)
    assert not method.links.requires_grad
