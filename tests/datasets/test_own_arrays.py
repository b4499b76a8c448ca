"""Your own arrays and .npz files: what is accepted, and what is refused with which words."""

import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from kdlab.datasets import from_arrays, load

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 8, 7, 3), np.uint8)
Y = np.arange(60) % 3


def good() -> dict:
    return {"x_train": X.copy(), "y_train": Y.copy(), "x_test": X[:12].copy(), "y_test": Y[:12]}


@pytest.mark.parametrize(
    "x, shape",
    [
        (X, (3, 8, 7)),
        (X[..., :1], (1, 8, 7)),
        (X[..., 0], (1, 8, 7)),
        ((X / 255).astype(np.float32), (3, 8, 7)),
        (X[..., 0] / 255, (1, 8, 7)),
        ((X / 255).astype(">f4"), (3, 8, 7)),
        (X[:, ::-1], (3, 8, 7)),
        (torch.from_numpy(X), (3, 8, 7)),
    ],
)
def test_accepted_forms_agree_and_are_left_alone(x, shape):
    before = x.clone() if isinstance(x, torch.Tensor) else x.copy()
    data = from_arrays(x, Y, x[:12], Y[:12])
    assert data.shape == shape and data.classes == ("0", "1", "2")
    values = np.asarray(x, np.float64) / (255 if np.asarray(x).dtype == np.uint8 else 1)
    values = values[..., 0] if shape[0] == 1 and values.ndim == 4 else values
    np.testing.assert_allclose(data.image(data.test.x), values[:12], atol=1e-6)
    assert (torch.equal if isinstance(x, torch.Tensor) else np.array_equal)(x, before)


def test_float32_grey_is_not_normalised_in_the_callers_memory():
    x = np.ascontiguousarray(X[..., :1] / 255, dtype=np.float32)
    before = x.copy()
    from_arrays(x, Y, x, Y)
    np.testing.assert_array_equal(x, before)


def test_a_read_only_array_and_constant_channels():
    x = X.copy()
    x[..., 1] = 7
    x.setflags(write=False)
    data = from_arrays(x, Y, x, Y)
    assert bool(data.train.x.isfinite().all()) and bool((data.train.x[:, 1].abs() < 1e-5).all())


def test_validation_is_drawn_from_training_in_proportion_by_seed():
    y = np.repeat([0, 1], [900, 100])
    x = np.arange(1000, dtype=np.float64)[:, None, None] * np.ones((1, 2, 2)) / 1000
    data, same, other = (
        from_arrays(x, y, x[:5], y[:5], ["a", "b"], val_fraction=0.2, seed=s) for s in (0, 0, 1)
    )
    assert data.val.y.bincount().tolist() == [180, 20]
    ids = [np.rint(data.image(s.x)[:, 0, 0] * 1000).astype(int) for s in (data.train, data.val)]
    assert sorted(np.concatenate(ids)) == list(range(1000))
    for split, index in ((data.train, ids[0]), (data.val, ids[1])):
        np.testing.assert_array_equal(split.y, y[index])  # images keep their labels
    assert same.fingerprint == data.fingerprint != other.fingerprint
    assert not torch.equal(data.val.x, other.val.x)


def test_limits_and_a_given_validation_split():
    data = from_arrays(**good(), x_val=X[:9], y_val=Y[:9], n_train=30, n_val=6, n_test=100)
    assert [len(s) for s in (data.train, data.val, data.test)] == [30, 6, 12]
    assert data.train.y.bincount().tolist() == [10, 10, 10]
    assert data.card["sizes"] == {"train": 30, "val": 6, "test": 12}


def ragged() -> list:
    return [[[1, 2], [3]], [[1, 2], [3, 4]]]


BAD = {
    "x_train has its channels first, .*transpose": {"x_train": X.transpose(0, 3, 1, 2)},
    r"x_train has shape \[60, 168\]": {"x_train": X.reshape(60, -1)},
    r"x_train has shape \[60, 8, 7, 2\]": {"x_train": X[..., :2]},
    "x_train is ragged": {"x_train": ragged()},
    "x_train has dtype object": {"x_train": np.array([X[0], X[0, :2]], object)},
    "x_train has dtype int64; .*astype": {"x_train": X.astype(np.int64)},
    "x_train has dtype bool": {"x_train": X > 5},
    "x_train has dtype <U": {"x_train": X.astype(str)},
    "x_train holds NaN": {"x_train": np.where(X > 250, np.nan, X / 255)},
    "x_test holds NaN or inf": {"x_test": np.where(X[:12] > 250, np.inf, X[:12] / 255)},
    "x_train holds values from 0 to 255; .*divide": {"x_train": X.astype(np.float32)},
    "x_train holds values from -0.5 to": {"x_train": X / 255 - 0.5},
    "x_train is empty": {"x_train": X[:0], "y_train": Y[:0]},
    "x_test is empty": {"x_test": X[:0], "y_test": Y[:0]},
    "x_train has 60 images, but y_train has 59 labels": {"y_train": Y[:59]},
    "x_test has 12 images, but y_test has 60": {"y_test": Y},
    r"x_test has images of \[7, 7, 3\]": {"x_test": X[:12, :7]},
    r"x_test has images of \[8, 7, 1\]": {"x_test": X[:12, ..., 0]},
    "y_train has dtype float64 and .* no whole numbers, such as 0.5": {"y_train": Y + 0.5},
    "y_train has dtype float64 and .* such as inf": {"y_train": np.where(Y, Y, np.inf)},
    "y_train has dtype complex": {"y_train": Y + 0j},
    "y_train has dtype <U": {"y_train": Y.astype(str)},
    "y_train has dtype object": {"y_train": np.array(["a", None, *Y[2:]], object)},
    r"y_train has shape \[60, 3\].*argmax": {"y_train": np.eye(3)[Y]},
    "y_train must hold labels from 0 to 2 .*or -1.* got -2 to 2": {"y_train": np.where(Y, Y, -2)},
    "y_train must tell at least 2 classes apart, got 0": {"y_train": Y * 0 - 1},
    "y_test must hold .*got -1 to 2; it is measured": {"y_test": np.where(Y, Y, -1)[:12]},
    "y_val must hold .*got -1 to 2; it is measured": {"x_val": X, "y_val": np.where(Y, Y, -1)},
    "y_test has no label for 4 of 12": {"y_test": np.where(Y, Y, np.nan)[:12]},
    "y_test has no label for 1 of 12": {"y_test": [None, *Y[1:12]]},
    "y_train has dtype uint64": {"y_train": np.where(Y, Y, 2**63 + 1).astype(np.uint64)},
    "y_test must hold labels from 0 to 2 .* got 0 to 7": {"y_test": np.r_[Y[:11], 7]},
    "y_train must hold labels from 0 to 1 .* got 0 to 2": {"classes": ["a", "b"]},
    "classes must differ": {"classes": ["a", "b", "a"]},
    "at least 2 classes": {"y_train": Y * 0, "y_test": Y[:12] * 0},
    "x_val and y_val belong together": {"x_val": X[:3]},
    r"x_val has images of \[8, 7, 1\]": {"x_val": X[:3, ..., 0], "y_val": Y[:3]},
    "val_fraction must be between 0 and 1": {"val_fraction": 1.0},
    "1 images with a label: too few": {"y_train": np.r_[1, np.full(59, -1)], "classes": "abc"},
    "too few to set 1 aside": {"x_train": X[:1], "y_train": Y[1:2], "y_test": Y[:12] * 0},
    "n_test must be at least 1": {"n_test": 0},
}


def hidden(y, missing):
    """Labels of which every second one is missing."""
    return [missing if i % 2 else label for i, label in enumerate(y.tolist())]


UNLABELLED_FORMS = {
    "-1": np.array(hidden(Y, -1)),
    "int8": np.array(hidden(Y, -1), np.int8),
    "tensor": torch.tensor(hidden(Y, -1)),
    "NaN": np.array(hidden(Y, np.nan)),
    "float16": np.array(hidden(Y, np.nan), np.float16),
    "bfloat16": torch.tensor(hidden(Y, np.nan), dtype=torch.bfloat16),
    "None": hidden(Y, None),
    "None and NaN": np.array([None, np.nan, *hidden(Y, None)[2:]], object),
    "masked": np.ma.array(Y, mask=[bool(i % 2) for i in range(60)]),
    "pandas": pd.Series(hidden(Y, pd.NA), dtype="Int64"),
}


@pytest.mark.parametrize("form", UNLABELLED_FORMS)
def test_missing_labels_are_unlabelled_in_training_and_never_set_aside(form):
    y = UNLABELLED_FORMS[form]
    data = from_arrays(**{**good(), "y_train": y}, val_fraction=0.2, seed=3)
    labelled = 29 if form == "None and NaN" else 30
    assert len(data.val) == 6 and len(data.train) == 54 and data.num_classes == 3
    assert (data.val.y >= 0).all() and int((data.train.y >= 0).sum()) == labelled - 6
    assert data.card["unlabelled"] == 60 - labelled and data.train.y.dtype == torch.int64
    for split in (data.train, data.val):  # images keep their labels
        for image, label in zip(split.x, split.y.tolist(), strict=True):
            pixels = np.rint(data.image(image) * 255)
            number = next(i for i in range(60) if np.array_equal(X[i], pixels))
            assert label == (
                -1 if number % 2 or (form, number) == ("None and NaN", 0) else Y[number]
            )
    given = from_arrays(**{**good(), "y_train": y}, x_val=X[:9], y_val=Y[:9], n_train=20)
    assert len(given.train) == 20 and int((given.train.y < 0).sum()) in (10, 11)


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", "int32", "uint64", "float32", "float64"]
)
def test_labels_of_any_type_that_loses_nothing(kind):
    data = from_arrays(**{**good(), "y_train": Y.astype(kind), "y_test": Y[:12].astype(kind)})
    assert data.fingerprint == from_arrays(**good()).fingerprint and "unlabelled" not in data.card
    two = from_arrays(X, Y > 0, X[:12], Y[:12] > 0)
    assert two.train.y.dtype == torch.int64 and two.num_classes == 2


@pytest.mark.parametrize("message", BAD)
def test_bad_arrays_are_named(message):
    with pytest.raises(ValueError, match=message):
        from_arrays(**{**good(), **BAD[message]})


def test_npz_equals_from_arrays(tmp_path):
    classes = np.array(["cat", "dog", "owl"])
    np.savez(tmp_path / "pets.npz", **good(), classes=classes)
    data = load(tmp_path / "pets.npz", seed=3)
    direct = from_arrays(**good(), classes=["cat", "dog", "owl"], seed=3)
    assert data.fingerprint == direct.fingerprint and data.name == "pets"
    assert data.card["seed"] == 3 and str(tmp_path) not in str(data.card)
    # As a string, compressed, with its own validation split and names stored as bytes.
    np.savez_compressed(
        tmp_path / "b.npz", **good(), classes=classes.astype("S"), x_val=X[:6], y_val=Y[:6]
    )
    data = load(str(tmp_path / "b.npz"), n_train=30)
    assert (len(data.train), len(data.val)) == (30, 6) and data.classes == ("cat", "dog", "owl")


def test_npz_lacking_an_array(tmp_path):
    arrays = good()
    arrays["xtest"] = arrays.pop("x_test")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"lacks the array 'x_test'; it has .*xtest"):
        load(tmp_path / "a.npz")


def test_npz_with_an_object_array_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", **{**good(), "x_train": np.array([X[0], X[0, :2]], object)})
    with pytest.raises(ValueError, match=r"x_train in .* cannot be read as plain numbers"):
        load(tmp_path / "a.npz")


def damage(path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "cut":
        raw = raw[: len(raw) // 2]
    elif how == "flipped":
        raw[2000] ^= 0xFF
    elif how == "empty":
        raw = bytearray()
    else:
        raw = bytearray(b"this is no archive")
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "text"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, how, save):
    path = tmp_path / "a.npz"
    save(path, **good())
    damage(path, how)
    with pytest.raises(ValueError, match=r"a\.npz (is not a whole|cannot be read)"):
        load(path)


def test_files_of_other_kinds(tmp_path):
    np.save(tmp_path / "a", X)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz is not a whole \.npz file"):
        load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match="lacks the array"):
        load(tmp_path / "b.npz")
    (tmp_path / "c.txt").write_text("1,2")
    with pytest.raises(
        ValueError, match=r"must be a folder of pictures, or a file that ends in \.npz"
    ):
        load(tmp_path / "c.txt")
    with pytest.raises(ValueError, match="unknown option 'size'"):
        np.savez(tmp_path / "d.npz", **good())
        load(tmp_path / "d.npz", size=32)
