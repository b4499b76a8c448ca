"""The curve that grows, and the interrupt that stops the training behind it."""

import os
import signal
import time

import pytest
import torch
from jupyter_client.manager import start_new_kernel

from kdlab.datasets import load
from kdlab.explorers import LiveCurve
from kdlab.models import build_for
from kdlab.training import fit, predict

LONG_TRAINING = """
from kdlab.datasets import load
from kdlab.explorers import LiveCurve
from kdlab.models import build_for
from kdlab.training import fit, predict
data = load("digits")
model = build_for("mlp", data.shape, data.num_classes, seed=0)
with LiveCurve() as curve:
    run = fit(model, data, epochs=1_000_000, validate=False, callbacks=[curve])
"""


@pytest.fixture
def data():
    return load("digits", n_train=128, n_val=20, n_test=20)


def test_every_step_and_every_epoch_is_on_the_curve(data):
    model = build_for("mlp", data.shape, data.num_classes, seed=0)
    with LiveCurve(smooth=1) as curve:
        fit(model, data, epochs=3, batch_size=32, callbacks=[curve])
    left, right = curve.figure().axes
    assert len(curve.terms["hard"]) == 12
    assert len(left.lines[0].get_xdata()) == 12
    assert list(right.lines[0].get_xdata()) == [4, 8, 12]


def test_reading_the_losses_waits_until_a_frame_is_drawn(data, monkeypatch):
    model = build_for("mlp", data.shape, data.num_classes, seed=0)
    with LiveCurve(every=1e9) as curve:
        curve._drawn = time.monotonic()
        fit(model, data, epochs=1, batch_size=32, callbacks=[curve])
        assert all(isinstance(value, torch.Tensor) for value in curve.terms["hard"])


def test_an_interrupt_keeps_the_model(data):
    model = build_for("mlp", data.shape, data.num_classes, seed=0)

    def interrupt(moment):
        if moment.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with LiveCurve() as curve, pytest.warns(UserWarning, match="stopped in epoch 2 of 50"):
        run = fit(model, data, epochs=50, batch_size=32, callbacks=[curve, interrupt])
    assert run.interrupted
    assert len(run.history) == 1
    assert torch.isfinite(predict(model, data.test.x)).all()


def test_the_toolbars_square_stops_a_running_cell_and_the_next_cell_goes_on():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        cell = client.execute(LONG_TRAINING)
        pictures = 0
        while pictures < 3:  # it is really running and drawing
            message = client.get_iopub_msg(timeout=120)
            assert message["msg_type"] != "error", message["content"]
            pictures += "image/png" in message["content"].get("data", {})
        manager.interrupt_kernel()
        assert _reply(client, cell)["status"] == "ok"
        after = client.execute(
            "assert run.interrupted and run.steps > 0; predict(model, data.val.x)"
        )
        assert _reply(client, after)["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _reply(client, message_id):
    while True:
        reply = client.get_shell_msg(timeout=60)
        if reply["parent_header"].get("msg_id") == message_id:
            return reply["content"]
