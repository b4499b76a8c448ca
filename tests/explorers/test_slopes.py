"""The explorer of two students: who is told what, and what its numbers mean."""

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from kdlab.explorers import SlopesExplorer
from kdlab.explorers import slopes as module


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer steps are enough to tell the students apart; so small a net wants one thread."""
    threads, steps = torch.get_num_threads(), module.STEPS
    torch.set_num_threads(1)
    module.STEPS = 150
    yield
    torch.set_num_threads(threads)
    module.STEPS = steps


@pytest.fixture(scope="module")
def shown():
    return SlopesExplorer(goal="Find it.")


def test_a_move_trains_anew_and_changes_picture_and_numbers(shown):
    first = shown.set(samples=6, weight=0.1, noise=0, draw=0)
    picture, told = shown.picture.value, repr(shown)
    second = shown.set(samples=9)
    assert len(first.samples.x) == 6 and len(second.samples.x) == 9
    assert shown.picture.value != picture and repr(shown) != told
    again = shown.set(samples=6)
    assert np.array_equal(again.values, first.values) and repr(shown) == told
    assert shown.picture.value == picture


def test_every_control_changes_what_is_learned(shown):
    base = shown.set(samples=6, weight=0.1, noise=0, draw=0)
    for change in ({"weight": 1.0}, {"noise": 20}, {"draw": 1}, {"samples": 7}):
        moved = shown.set(**{"samples": 6, "weight": 0.1, "noise": 0, "draw": 0} | change)
        assert np.abs(moved.values[1] - base.values[1]).max() > 1e-3, change


def test_the_controls_reach_samples_and_students(shown):
    result = shown.set(samples=5, weight=0.1, noise=30, draw=4)
    samples = module.ask_teacher(5, 0.3, 4)
    for name in ("x", "values", "slopes"):
        assert torch.equal(getattr(result.samples, name), getattr(samples, name))
    values, slopes = module.train_both(samples, 0.1, seed=4)
    assert np.array_equal(result.values, values) and np.array_equal(result.slopes, slopes)


def test_at_weight_zero_both_students_are_one(shown):
    result = shown.set(samples=6, weight=0.0, noise=0, draw=0)
    assert np.array_equal(result.values[0], result.values[1])
    assert np.array_equal(result.slopes[0], result.slopes[1])


def test_the_weight_does_not_reach_the_student_of_values(shown):
    light = shown.set(samples=6, weight=0.01, noise=0, draw=0)
    heavy = shown.set(weight=10.0)
    assert np.allclose(light.values[0], heavy.values[0], atol=1e-9)
    assert not np.allclose(light.values[1], heavy.values[1], atol=1e-3)


def test_both_start_alike_and_another_seed_elsewhere():
    for one, other in zip(module.start(0), module.start(1), strict=True):
        assert torch.equal(one[0], one[1])
        assert torch.equal(one, other) == (not one.any())  # biases that start at zero


def alone(samples, weight, steps=40):
    """One student, trained in plain words; its slope by differences of a finite size."""
    layers = [layer[0].detach().clone().requires_grad_() for layer in module.start(3)]
    optimizer = torch.optim.Adam(layers)

    def student(x):
        for number, (weights, bias) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
            x = (x.tanh() if number else x) @ weights + bias
        return x.squeeze(1)

    x, h = samples.x.unsqueeze(1), 1e-5
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = module.LR * (1 + np.cos(np.pi * step / steps)) / 2
        slope = (student(x + h) - student(x - h)) / (2 * h)
        loss = (student(x) - samples.values).square().mean()
        loss = loss + weight * (slope - samples.slopes).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student(module.places().unsqueeze(1)).detach().numpy()


def test_each_student_learns_as_if_alone(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 40)
    samples = module.ask_teacher(7, 0.2, 3)
    values, _ = module.train_both(samples, 0.7, seed=3)
    for row, weight in enumerate((0.0, 0.7)):
        assert np.allclose(values[row], alone(samples, weight), atol=1e-4)


def test_slopes_close_what_values_leave_open(shown):
    for draw in range(3):
        result = shown.set(samples=6, weight=0.1, noise=0, draw=draw)
        places = torch.searchsorted(module.places(), result.samples.x).clamp(max=400).numpy()
        true_values, true_slopes = (row.numpy() for row in module.teacher(module.places()))
        at_samples = np.abs(result.values[:, places] - true_values[places]).max(axis=1)
        slope_gaps = np.abs(result.slopes[:, places] - true_slopes[places]).max(axis=1)
        assert (at_samples < 0.15).all()  # both know the samples; a place is 0.01 wide
        assert slope_gaps[1] < 0.8 < slope_gaps[0]
        assert result.value_errors[1] < 0.8 * result.value_errors[0]
        assert result.slope_errors[1] < 0.8 * result.slope_errors[0]


def test_the_slopes_are_those_of_the_values(shown):
    result = shown.set(samples=8, weight=0.1, noise=0, draw=2)
    step = (module.HIGH - module.LOW) / (module.PLACES - 1)
    measured = np.gradient(result.values, step, axis=1)
    assert np.abs(measured - result.slopes)[:, 2:-2].max() < 0.05


def test_errors_are_shares_of_the_teachers_size(shown):
    result = shown.set(samples=6, weight=0.1, noise=0, draw=0)
    x = np.linspace(-2, 2, 401)
    true = np.sin(2.2 * x) + 0.45 * np.sin(5.1 * x + 0.6)
    slope = 2.2 * np.cos(2.2 * x) + 0.45 * 5.1 * np.cos(5.1 * x + 0.6)
    for row in (0, 1):
        gap = np.linalg.norm(result.values[row] - true) / np.linalg.norm(true)
        assert result.value_errors[row] == pytest.approx(gap)
        gap = np.linalg.norm(result.slopes[row] - slope) / np.linalg.norm(slope)
        assert result.slope_errors[row] == pytest.approx(gap)
    for name, value, slope in zip(
        module.NAMES, result.value_errors, result.slope_errors, strict=True
    ):
        assert f"{name}: values {value:.0%} off, slopes {slope:.0%} off" in repr(shown)


def test_the_teachers_slope_is_the_derivative_of_its_value():
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)
    derivative = vmap(grad(lambda at: module.teacher(at)[0].sum()))(x)
    assert torch.allclose(module.teacher(x)[1], derivative)


def test_samples_are_in_order_within_the_ends_and_exact_without_noise():
    for count in (2, 3, 20):
        for draw in range(10):
            samples = module.ask_teacher(count, 0.0, draw)
            assert len(samples.x) == count
            assert samples.x[0] == module.LOW and samples.x[-1] == module.HIGH
            assert (samples.x.diff() > 0.3 * 4 / (count - 1)).all()
            values, slopes = module.teacher(samples.x)
            assert torch.equal(samples.values, values) and torch.equal(samples.slopes, slopes)


def test_noise_is_a_share_of_the_typical_value_and_slope_and_moves_no_sample():
    sizes = [float(row.square().mean().sqrt()) for row in module.teacher(module.places())]
    clean = [module.ask_teacher(20, 0.0, draw) for draw in range(50)]
    noisy = [module.ask_teacher(20, 0.3, draw) for draw in range(50)]
    assert all(torch.equal(a.x, b.x) for a, b in zip(clean, noisy, strict=True))
    for name, size in zip(("values", "slopes"), sizes, strict=True):
        gaps = torch.cat(
            [getattr(a, name) - getattr(b, name) for a, b in zip(clean, noisy, strict=True)]
        )
        assert float(gaps.std()) == pytest.approx(0.3 * size, rel=0.1)
        assert abs(gaps.mean()) < 0.1 * size


def test_it_trains_on_one_thread_and_gives_the_others_back(shown, monkeypatch):
    used, train = [], module.train_both

    def watched(*arguments, **options):
        used.append(torch.get_num_threads())
        return train(*arguments, **options)

    monkeypatch.setattr(module, "train_both", watched)
    torch.set_num_threads(2)
    shown.set(samples=3)
    given_back = torch.get_num_threads()
    torch.set_num_threads(1)
    assert used == [1] and given_back == 2


def test_each_sample_carries_a_short_piece_of_its_tangent(shown):
    samples = shown.set(samples=5, weight=0.1, noise=20, draw=0).samples
    pieces = [line.get_xydata() for line in shown.figure.axes[0].lines if line.get_lw() == 3.0]
    pieces = np.array([piece for piece in pieces if len(piece) == 2])
    middles, reach = pieces.mean(axis=1), np.diff(pieces, axis=1)[:, 0]
    assert np.allclose(middles, np.stack([samples.x, samples.values], axis=1))
    assert np.allclose(reach[:, 1] / reach[:, 0], samples.slopes)
    assert (reach[:, 0] > 0).all() and (reach[:, 0] < 0.3).all()


def test_the_goal_and_the_controls_are_shown(shown):
    assert "Find it." in shown.children[0].value
    assert list(shown.controls) == ["samples", "weight", "noise", "draw"]
    assert all(not getattr(c, "continuous_update", False) for c in shown.controls.values())
