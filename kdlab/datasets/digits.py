"""Digits: 1,797 real handwritten digits of 8×8 pixels, which scikit-learn carries."""

import numpy as np

from kdlab.datasets.arrays import from_arrays
from kdlab.datasets.data import Data, in_stratified_order

CLASSES = tuple("0123456789")
_TEST, _VAL = 400, 200


def load(
    *,
    seed: int = 0,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Data:
    """Split into 1,197 for training, 200 for validation and 400 for test, in equal proportions.

    ``seed`` draws training and validation; the test split is one and the same for every seed, so
    that a teacher of another seed has not seen it. ``n_train``, ``n_val``, ``n_test`` are upper
    limits.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8)
    order = in_stratified_order(y, 0)
    test, rest = order[:_TEST], np.sort(order[_TEST:])
    rest = rest[in_stratified_order(y[rest], seed)]
    val, train = rest[:_VAL], rest[_VAL:]
    return from_arrays(
        x[train],
        y[train],
        x[test],
        y[test],
        CLASSES,
        x_val=x[val],
        y_val=y[val],
        seed=seed,
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        name="digits",
        card={
            "source": "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI "
            "Machine Learning Repository (1998); its test part, as in scikit-learn",
            "licence": "CC BY 4.0",
            "how": "8×8 counts of ink from 0 to 16, divided by 16",
        },
    )
