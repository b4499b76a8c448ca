"""Labels and images are looked at before the first step, in all splits, however they came."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdlab.datasets import Data, Split, check_inputs, check_labels, from_arrays

PARTS = ("train", "val", "test")


def made(**splits) -> Data:
    x, y = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    usual = {part: Split(x.clone(), y.clone()) for part in PARTS}
    return Data("own", classes=("a", "b", "c"), mean=(0.0,), std=(1.0,), card={}, **usual | splits)


def labelled(y) -> Split:
    return Split(torch.randn(12, 1, 4, 4), y)


Y = torch.arange(12) % 3
WRONG = {
    r"got 0 to 3 \(1 of 12 wrong, the first, 3, at index 5\), expected 0 to 2": torch.where(
        torch.arange(12) == 5, 3, Y
    ),
    r"got -2 to 2 .*the first, -2, at index 1\)": torch.where(Y == 1, -2, Y),
    "got 11 labels, expected one for each of 12 images": Y[:11],
    r"got shape \[12, 3\], expected one label .*argmax\(1\)": torch.eye(3)[Y],
    r"got shape \[12, 3\], expected one label per image": torch.eye(3, dtype=torch.int64)[Y],
    r"got shape \[12, 1\], .*flatten": Y[:, None],
    r"got torch.float32, expected whole .*y.long\(\)": Y.float(),
    "got torch.float16.*-1 in place of NaN": torch.where(Y == 1, torch.nan, Y).half(),
    "got torch.complex64": Y.cfloat(),
    "got ndarray, expected an int64 tensor": Y.numpy(),
    "got list": Y.tolist(),
    r"got shape \[\]": torch.tensor(3),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("message", WRONG)
def test_wrong_labels_are_named_with_their_split(message, part):
    with pytest.raises(ValueError, match=f"^data.{part}.y: {message}"):
        check_labels(made(**{part: labelled(WRONG[message])}))


def test_unlabelled_images_are_for_training_alone():
    hidden = labelled(torch.where(Y == 1, -1, Y))
    check_labels(made(train=hidden))
    check_labels(made(train=labelled(Y * 0 - 1)))
    for part in ("val", "test"):
        with pytest.raises(
            ValueError, match=rf"^data.{part}.y: got -1 to 2 \(4 of 12.*are measured"
        ):
            check_labels(made(**{part: hidden}))


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "int32", "int64", "bool", "uint16", "uint64"]
)
def test_whole_numbers_of_any_type_become_int64(kind):
    dtype = getattr(torch, kind)
    split = labelled((Y % 2).to(dtype))
    assert split.y.dtype == torch.int64 and split.y.tolist() == (Y % 2).tolist()
    check_labels(made(train=split, val=split.select([0, 1]), test=split.first(3)))


def test_empty_splits():
    empty = Split(torch.randn(0, 1, 4, 4), Y[:0])
    check_labels(made(test=empty))
    check_inputs(made(test=empty))
    for part in ("train", "val"):
        with pytest.raises(ValueError, match=f"^data.{part}: got no images"):
            check_labels(made(**{part: empty}))
    with pytest.raises(ValueError, match=r"^data.classes: got none"):
        check_labels(replace(made(), classes=()))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_numbers_that_are_none_are_found(part, value, kind):
    data = made(**{p: Split(made().train.x.to(kind), Y) for p in PARTS})
    check_inputs(data)
    x = getattr(data, part).x
    assert x.dtype == kind
    x[7, 0, 1, 2] = x[7, 0, 2, 2] = x[9, 0, 0, 0] = value  # in place: looked at again
    message = (
        rf"^data.{part}.x: got NaN or infinity in 2 of 12 images \(the first at index 7, 2 val"
    )
    with pytest.raises(ValueError, match=message):
        check_inputs(data)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(12, 1, 4, 4, dtype=torch.uint8), r"got torch.uint8 images.*x.float\(\) / 255"),
        (torch.zeros(12, 1, 4, 4, dtype=torch.bool), "got torch.bool images"),
        (torch.zeros(12, 1, 4, 4).requires_grad_(), r"got images with a gradient.*detach"),
        (torch.zeros(12, 1, 4, 5), r"got images of shape \[1, 4, 5\], expected \[1, 4, 4\]"),
        (np.zeros((12, 1, 4, 4)), "got ndarray, expected a tensor"),
        (torch.zeros(12), r"got Tensor \[12\], expected a tensor \[N, ...\]"),
        (torch.full((12, 1, 4, 4), torch.nan, dtype=torch.cfloat), "got NaN or infinity in 12 of"),
    ],
)
def test_images_that_no_model_could_take(x, message):
    with pytest.raises(ValueError, match=f"^data.val.x: {message}"):
        check_inputs(made(val=Split(x, Y)))


def test_large_numbers_tokens_and_inference_tensors_are_left_alone():
    check_inputs(made(val=Split(torch.full((12, 1, 4, 4), 3e38), Y)))
    tokens = Split(torch.zeros(12, 7, dtype=torch.int64), Y)
    check_inputs(made(train=tokens, val=tokens, test=tokens))
    with torch.inference_mode():
        data = made()
    check_inputs(data)
    check_inputs(data)


def test_a_data_set_is_looked_at_once(monkeypatch):
    data, calls = made(), []
    look = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda x: calls.append(1) or look(x))
    for _ in range(3):
        check_inputs(data)
    assert len(calls) == 3
    check_inputs(data.with_labels(3))  # another object
    assert len(calls) == 6


def test_data_sets_of_the_house_pass():
    rng = np.random.default_rng(0)
    data = from_arrays(
        rng.random((30, 4, 4)), np.arange(30) % 3, rng.random((9, 4, 4)), [0, 1, 2] * 3
    )
    check_labels(data)
    check_inputs(data)
    check_labels(data.with_labels(6))
    check_inputs(data.subset(8))
