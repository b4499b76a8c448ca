"""Arrays and tensors as people have them: loaded or refused in one sentence, and counted."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.datasets import from_arrays, from_tensors, load

RNG = np.random.default_rng(1)
X = RNG.integers(0, 256, (60, 6, 5, 3), np.uint8)
Y = np.arange(60) % 3


def both(x=X, y=Y, **more):
    return from_arrays(x, y, x[:12], y[:12], **more)


# ---- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["arrays", "tensors"])
@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ([1, 2, 3], ("1", "2", "3")),
        ([3, 7, 9], ("3", "7", "9")),
        ([0, 1, 3], ("0", "1", "3")),
        ([2023010501, 2023010502, 2023010503], ("2023010501", "2023010502", "2023010503")),
        ([0, 1, 2], ("0", "1", "2")),
    ],
)
def test_unused_numbers_are_no_classes(numbers, names, made):
    y = np.array(numbers)[Y]
    if made == "arrays":
        data = both(y=y)
    else:
        x = torch.randn(60, 4)
        data = from_tensors(x, torch.from_numpy(y), x[:12], torch.from_numpy(y[:12]))
    assert data.classes == names and data.num_classes == 3
    np.testing.assert_array_equal(data.test.y, Y[:12])
    assert data.card["counts"]["test"] == dict.fromkeys(names, 4)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (np.where(np.arange(60) < 5, 255, Y), None, "the label 255 5 times beside 0 to 2.*ignore"),
        (np.where(np.arange(60) < 5, 99, Y + 1), None, "the label 99 5 times beside 1 to 3"),
        (Y + 1, ["a", "b", "c"], "must hold labels from 0 to 2 .* got 1 to 3; count them from 0"),
        (np.where(Y, Y, 255), ["a", "b", "c"], "got 1 to 255; where 255 or -100 means 'ignore'"),
        (np.where(Y, Y, -100), None, "got -100 to 2; where 255 or -100 means 'ignore'"),
        (Y, np.array("cat"), r"classes: got ndarray of shape \[\], expected a list with one name"),
        (Y, 7, "classes: got int, expected a list"),
        (Y, {0: "a", 1: "b", 2: "c"}, "classes: got dict"),
        (Y, {"a", "b", "c"}, "classes: got set"),
        (Y, b"abc", "classes: got bytes"),
        (Y, np.array([["a", "b", "c"]]), r"classes: got ndarray of shape \[1, 3\]"),
    ],
)
def test_labels_and_names_that_are_none(y, classes, message):
    with pytest.raises(ValueError, match=message):
        both(y=y, classes=classes)


def test_a_label_that_training_has_not():
    y = np.array([3, 7, 9])[Y]
    with pytest.raises(ValueError, match="y_test: got the label 8, which y_train has not"):
        from_arrays(X, y, X[:3], np.array([3, 8, 9]))
    # Below the largest number of training it is a class that training lacks, and is told.
    data = from_arrays(X, np.array([0, 1, 3])[Y], X[:4], np.arange(4))
    assert data.classes == ("0", "1", "2", "3") and "no training sample of 2" in data.card["line"]


# ---- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [9, 10, 12, 16])
def test_pictures_of_more_than_8_bits(bits, tmp_path):
    x = RNG.integers(0, 2**bits, (60, 6, 5), np.uint16)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=Y, x_test=x[:12], y_test=Y[:12])
    data = load(tmp_path / "a.npz")
    top = 2 ** max(bits, 10) - 1
    np.testing.assert_allclose(data.image(data.test.x), x[:12] / top, atol=1e-5)
    assert abs(float(data.train.x.std()) - 1) < 0.01


def test_integers_that_cannot_be_told_get_advice_that_loses_nothing():
    with pytest.raises(ValueError, match=r"uint16, but no value above 255.*astype\('uint8'\)"):
        both(X.astype(np.uint16))
    wide = X.astype(np.int32) * 100
    with pytest.raises(ValueError, match=r"int32; .*rescale all splits by the range") as error:
        both(wide)
    assert "astype" not in str(error.value)
    with pytest.raises(ValueError, match=r"from -1 to 1; .*rescale .*or give mean and std"):
        both(X / 127.5 - 1)


@pytest.mark.parametrize(
    "x", [(X > 200).astype(np.uint8), X // 250, (X > 250) / 255.0, X / 255.0 / 255.0 / 20]
)
def test_faint_images_are_normalised_not_left_at_zero(x):
    data = both(x)
    assert data.std != (1.0,) * 3 and abs(float(data.train.x.std()) - 1) < 0.01


def test_images_of_zero_and_one_are_black_and_white():
    x = (X > 200).astype(np.uint8)
    data = both(x)
    np.testing.assert_allclose(data.image(data.test.x), x[:12], atol=1e-5)
    assert data.card["values"] == [0, 1] and both().card["values"] == [0, 1]


def test_a_constant_channel_becomes_zero_and_is_no_reason_to_divide():
    x = X.copy()
    x[..., 1] = 7
    data = both(x)
    assert data.std[1] == 1 and bool((data.train.x[:, 1].abs() < 1e-5).all())


# ---- tensors --------------------------------------------------------------------------------


def test_tensors_may_have_their_channels_first():
    first = X.transpose(0, 3, 1, 2)
    plain = both()
    for tensor in (torch.from_numpy(first), torch.from_numpy(first).float() / 255):
        data = from_arrays(tensor, Y, tensor[:12], Y[:12])
        torch.testing.assert_close(data.train.x, plain.train.x)
    assert both(first, layout="NCHW").fingerprint == plain.fingerprint
    assert both(torch.from_numpy(X), layout="NHWC").fingerprint == plain.fingerprint
    with pytest.raises(ValueError, match="channels first or last; say which: layout="):
        both(torch.zeros(60, 3, 8, 3))
    with pytest.raises(ValueError, match="unknown layout 'NCWH'"):
        both(layout="NCWH")
    with pytest.raises(ValueError, match=r"\[60, 4, 8, 8\].*from_tensors"):
        both(torch.zeros(60, 4, 8, 8))


def test_normalised_images_stay_as_they_are_and_say_so():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    pixels = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()).float() / 255
    ready = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    data = both(ready, mean=mean, std=std)
    assert torch.equal(data.test.x, ready[:12]) and data.mean == mean and data.std == std
    np.testing.assert_allclose(data.image(data.test.x), X[:12] / 255, atol=1e-5)
    assert "normalised already" in data.card["how"]
    untold = both(ready)
    assert torch.equal(untold.test.x, ready[:12]) and untold.std == (1.0,) * 3
    as_array = both(ready.numpy(), layout="NCHW", mean=mean, std=std)
    assert as_array.fingerprint == data.fingerprint
    tensors = from_tensors(
        ready, torch.from_numpy(Y), ready[:12], torch.from_numpy(Y[:12]), mean=mean, std=std
    )
    assert tensors.std == std and torch.equal(tensors.test.x, ready[:12])


@pytest.mark.parametrize("made", [from_arrays, from_tensors])
@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), None, "mean and std belong together"),
        ((0.5,), (0.5,), r"mean: got \(0.5,\), expected 3 finite numbers"),
        ((0.5,) * 3, (0.5, 0, 1), "std: got .*expected 3 positive numbers"),
        ((0.5, float("nan"), 0), (1,) * 3, "mean: got .* finite"),
        ("abc", (1,) * 3, "mean: got 'abc'"),
    ],
)
def test_statistics_that_are_none(made, mean, std, message):
    x, y = torch.randn(60, 3, 6, 5), torch.from_numpy(Y)
    with pytest.raises(ValueError, match=message):
        made(x, y, x[:12], y[:12], mean=mean, std=std)


class Items(torch.utils.data.Dataset):
    """A map-style data set, as torchvision has them."""

    classes = ("cat", "dog", "owl")

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if index >= len(self.x):
            raise IndexError(index)
        return self.x[index], int(self.y[index])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


def test_data_sets_of_pytorch_are_sources():
    x, y = torch.randn(60, 3, 6, 5), torch.from_numpy(Y)
    plain = from_tensors(x, y, x[:12], y[:12], ["cat", "dog", "owl"])
    tables = [torch.utils.data.TensorDataset(x, y), torch.utils.data.TensorDataset(x[:12], y[:12])]
    items = [Items(x, y), Items(x[:12], y[:12])]
    arrays = [Items(x.numpy(), y), Items(x[:12].numpy(), y)]
    cut = torch.utils.data.Subset(items[0], range(12))
    assert from_tensors(*items).fingerprint == plain.fingerprint
    assert from_tensors(*arrays).fingerprint == plain.fingerprint
    assert from_tensors(x_train=items[0], x_test=cut).fingerprint == plain.fingerprint
    assert from_tensors(*tables, classes=plain.classes).fingerprint == plain.fingerprint
    mixed = from_tensors(items[0], None, x[:12], y[:12], x_val=items[1])
    assert len(mixed.val) == 12 and len(mixed.train) == 60


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((Stream(), Stream()), "x_train: got Stream, expected a data set with a length"),
        ((Items(torch.zeros(0, 3), Y), Items(X, Y)), "x_train: got Items without a sample"),
        ((Items([torch.zeros(2), torch.zeros(3)], Y), None), "x_train: got samples of shape"),
        ((Items(["a", "b"], Y), None), "x_train: got a str in sample 0, expected pairs"),
        ((torch.utils.data.TensorDataset(torch.zeros(5, 3)),), "x_train: got .* of 1 tensors"),
        ((torch.zeros(5, 3),), "y_train: got NoneType, expected a tensor"),
        ((Items(torch.zeros(60, 2), Y),), "x_test: got NoneType, expected a tensor"),
    ],
)
def test_sources_that_are_none(sources, message):
    with pytest.raises(ValueError, match=message):
        from_tensors(*sources)
    with pytest.raises(ValueError, match=r"x_train: got Items, expected an array; .*from_tensors"):
        from_arrays(Items(X, Y), Y, X, Y)


# ---- hostile files --------------------------------------------------------------------------


def stored(path, change=None, **more):
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:12], "y_test": Y[:12]} | more
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            raw = stream.getvalue()
            archive.writestr(f"{name}.npy", change(name, raw) if change else raw)
    return path


def lying(name, raw):
    """A header that promises a terabyte."""
    return raw.replace(b"(60, 6, 5, 3)", b"(10**4,9,9,9)"[:13]) if name == "x_train" else raw


def larger(name, raw):
    return raw.replace(b"(60, 6, 5, 3)", b"(60, 6, 5, 9)") if name == "x_train" else raw


def huge(name, raw):
    old = b"'shape': (60, 6, 5, 3), }" + b" " * 20
    new = b"'shape': (60, 60000, 60000, 3), }"
    return raw.replace(old, new + b" " * (len(old) - len(new))) if name == "x_train" else raw


@pytest.mark.parametrize("change", [lying, larger, huge])
def test_headers_that_lie(tmp_path, change):
    with pytest.raises(ValueError, match=r"x_train(\.npy)? (has|in) .*"):
        load(stored(tmp_path / "a.npz", change))


def test_an_archive_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("kdlab.datasets.arrays._UNPACKED", 2**20)
    path = stored(tmp_path / "a.npz", x_train=np.zeros((60, 200, 200, 3), np.uint8))
    with pytest.raises(ValueError, match=r"bytes that unpack to 7,.*expected at most 100 times"):
        load(path)


def test_encrypted_and_unknown_archives(tmp_path):
    for place, value, message in ((6, 1, "encrypted"), (8, 99, "not a whole .npz file")):
        raw = bytearray(stored(tmp_path / "a.npz").read_bytes())
        for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            for at in [i for i in range(len(raw)) if raw[i : i + 4] == mark]:
                raw[at + place + shift : at + place + shift + 2] = struct.pack("<H", value)
        (tmp_path / "b.npz").write_bytes(raw)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "b.npz")


def test_names_in_an_archive_and_arrays_that_nobody_reads(tmp_path):
    with pytest.raises(ValueError, match=r"classes: got ndarray of shape \[\]"):
        load(stored(tmp_path / "a.npz", classes=np.array("cat")))
    data = load(stored(tmp_path / "b.npz", x_extra=X, classes=np.array([b"a", b"b", b"caf\xe9"])))
    assert data.card["left_out"] == {"array 'x_extra'": 1} and data.classes[:2] == ("a", "b")


def test_copies_across_splits_are_counted():
    y = Y.copy()
    y[1] = 0
    x = X.copy()
    x[1] = x[2]
    x[3] = x[0]
    data = from_arrays(x, y, x[:12], y[:12], x_val=x[40:44], y_val=y[40:44])
    assert data.card["duplicates"] == {
        "train": 2,
        "val in train": 4,
        "test in train": 12,
        "with two labels": 1,
    }
    assert "duplicates: 2 train, 4 val in train, 12 test in train" in data.card["line"]


KINDS = st.sampled_from(["uint8", "uint16", "float32", "int64", "bool"])
LABELS = st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3, 7, 255, 2023010501]), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(KINDS, LABELS, st.sampled_from([1, 200, 1023, 60000]), st.sampled_from([None, 4]))
def test_every_image_is_used_or_counted(kind, labels, top, limit):
    y = np.array([0, 1] * 6 + labels)
    x = np.random.default_rng(top).integers(0, top + 1, (len(y), 3, 4)).astype(kind)
    try:
        data = from_arrays(x, y, x[:4], y[:4], n_train=limit)
    except ValueError as error:
        assert str(error)[:2] in ("x_", "y_")
        return
    card = data.card
    assert sum(card["sizes"].values()) + sum(card["left_out"].values()) == len(y) + 4
    told = sum(sum(of.values()) for of in card["counts"].values()) + card.get("unlabelled", 0)
    assert told == sum(card["sizes"].values()) and data.train.x.isfinite().all()
    assert {*data.classes} == {str(label) for label in y if label >= 0}
