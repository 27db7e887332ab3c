"""The 1,797 handwritten digits of 8 x 8 pixels in scikit-learn (UCI optdigits, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minivit.data.dataset import Dataset, channel_statistics
from minivit.errors import UserError, install


def load_digits() -> Dataset:
    """Return the digits as uint8 (n, 8, 8, 1); the test set is a fixed fifth of each class.

    Raises
    ------
    UserError
        scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError(f"the digits are part of scikit-learn; install it: {install('scikit-learn')}") from error
    bunch = datasets.load_digits()
    sixteenths = bunch.images.astype(np.int64)[..., None]  # 0 to 16, exact
    images = ((sixteenths * 255 + 8) // 16).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    test = _every_fifth_of_each_class(labels)
    mean, std = channel_statistics(images[~test])
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test], tuple("0123456789"), mean, std)


def _every_fifth_of_each_class(labels: NDArray[np.int64]) -> NDArray[np.bool]:
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[2::5]] = True
    return chosen
