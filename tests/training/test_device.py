"""What `fit` asks of the machine, and `predict`."""

import platform
import threading

import pytest
import torch
from tiny import make_cnn, make_data, same
from torch import nn

from kdlab.datasets.views import Augmentation
from kdlab.training import device, fit, predict
from kdlab.training.batches import Batches
from kdlab.training.predict import channels_last

DATA = make_data()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_the_allocator_takes_the_setting():
    assert device.keep_pages()


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_a_cards_generation_decides_the_precision(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert device.pick_precision("auto", torch.device("cuda")) == precision


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_convolutions_setting_comes_back(kind):
    before = torch.backends.cudnn.benchmark
    with device.fast_kernels(torch.device(kind)):
        assert torch.backends.cudnn.benchmark == (kind == "cuda")
    assert torch.backends.cudnn.benchmark == before


def test_the_facts_beside_a_number():
    facts = device.describe()
    assert facts["torch"] == torch.__version__ and facts["name"]
    assert facts["threads"] == torch.get_num_threads() and facts["device"] in device.DEVICES
    run = fit(make_cnn(DATA), DATA, epochs=1, device="cpu")
    assert run.facts == {"device": "cpu", "precision": "fp32", "micro_batch": 96}
    assert run.seconds > 0 and run.samples_per_second == pytest.approx(96 / run.seconds)


@pytest.mark.parametrize("batch_size", [1, 7, 96, 1000])
def test_predictions_do_not_depend_on_the_batch(batch_size):
    model = make_cnn(DATA, dropout=0.5).train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    logits = predict(model, DATA.test.x, batch_size)
    assert [module.training for module in model.modules()] == modes
    assert not logits.requires_grad and logits.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(DATA.test.x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [None, Augmentation(1)])
def test_images_come_in_the_order_of_the_fast_convolutions(channels, augment):
    """One channel is a trap: its strides may say anything, and torch goes by the strides."""
    data = make_data(channels=channels)
    batches = Batches(data.train, augment, torch.device("cpu"))
    index = torch.tensor([3, 0, 5])
    shown = batches(index, 0)
    expected = augment(data.train.x[index], index, 0) if augment else data.train.x[index]
    assert torch.equal(shown, expected)
    for images in (shown, channels_last(data.train.x)):
        assert images.stride() == (64 * channels, 1, 8 * channels, channels)
    assert torch.equal(channels_last(data.train.x), data.train.x)
    assert channels_last(shown) is shown
    assert channels_last(data.train.y) is data.train.y


def test_a_model_without_weights_can_answer_too():
    assert predict(nn.Flatten(), DATA.test.x).shape == (96, 64)


def test_no_images():
    with pytest.raises(ValueError, match=r"^images: none came"):
        predict(nn.Flatten(), DATA.test.x[:0])


def test_a_run_in_another_thread():
    """Signals belong to the main thread; a run elsewhere goes without."""
    here, there = make_cnn(DATA), make_cnn(DATA)
    fit(here, DATA, epochs=2, batch_size=32)
    thread = threading.Thread(target=lambda: fit(there, DATA, epochs=2, batch_size=32))
    thread.start()
    thread.join()
    assert same(here.state_dict(), there.state_dict())
