"""A Vision Transformer with the methods of a scikit-learn classifier: ``minivit.ViTClassifier``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.errors import UserError, install
from minivit.nn.presets import create_model, get_config
from minivit.ops.softmax import softmax
from minivit.train.fit import fit
from minivit.train.recipe import Recipe

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise UserError(f"ViTClassifier needs scikit-learn of 1.6 or later: {install('scikit-learn>=1.6')}") from error

_OF_THE_RECIPE = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "crop_padding", "flip")
_SEEDS = 2**31 - 1
# Another scale is likely if the mean distance from the range of the training pixels exceeds this fraction of its width,
# or if all pixels lie within this fraction of it.
_BEYOND, _NARROW = 0.2, 0.01


class ViTClassifier(ClassifierMixin, BaseEstimator):
    """A Vision Transformer for images, as an estimator of scikit-learn.

    Images are arrays (n, height, width), (n, height, width, C), or rows (n, height * width * C). Pixels of uint8 are
    taken as they are. Others are scaled: the smallest value of the training images becomes 0 and the largest 255, and
    all are rounded to the 256 values between; what lies outside in `predict` becomes 0 or 255. Sides that the patches
    do not divide are filled up with zeros. Of fields that are None the recipe has the values.

    Parameters
    ----------
    model : str
        A preset, such as "vit_mini_patch4_32"; its classes, channels and image size are those of the data.
    model_options : dict, optional
        Other fields of `ViTConfig` that differ from the preset's.
    recipe : Recipe, str or dict, optional
        As `minivit.fit` takes it.
    image_shape : tuple of int, optional
        (height, width) or (height, width, C) of the image in a row. By default a square of one channel, else of three;
        rows of another length are filled up with zeros to a square, with a warning.
    epochs, batch_size : int, optional
        Passes over the training images; images in a step.
    lr, weight_decay : float, optional
        Largest learning rate; weight decay of matrices.
    label_smoothing : float, optional
        See `ops.cross_entropy`.
    crop_padding : int, optional
        Largest random shift of a training image, in pixels; 0 for none.
    flip : bool, optional
        Whether half of the training images are mirrored.
    random_state : int, RandomState or None
        The seed of everything that is random; None draws one from NumPy's global generator.
    n_jobs : int, optional
        The number of workers; None is one, and -1 the machine's cores. It changes no bit of the result.
    verbose : bool
        Whether a line is printed after each epoch.

    Attributes
    ----------
    classes_ : array
        The labels, in the order of the columns of `predict_proba`.
    n_features_in_ : int
        height * width * C.
    image_shape_ : tuple of int
        (height, width, C) of an image.
    pixel_range_ : tuple of float
        The values that become 0 and 255.
    result_ : FitResult
        The metrics of each epoch, and the model as `result_.model`.
    """

    def __init__(
        self,
        model: str = "vit_nano_patch4_8",
        *,
        model_options: Mapping[str, Any] | None = None,
        recipe: Recipe | str | Mapping[str, Any] | None = "digits",
        image_shape: tuple[int, ...] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        label_smoothing: float | None = None,
        crop_padding: int | None = None,
        flip: bool | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.model_options = model_options
        self.recipe = recipe
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.crop_padding = crop_padding
        self.flip = flip
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> Self:
        """Train a new model on images `X` with the labels `y` (n,) of any kind, and return the estimator.

        Raises
        ------
        ValueError
            The images, the labels and the parameters do not fit each other.
        RunError
            The loss is not finite.
        """
        shape = _shape_of(X)
        X, y = validate_data(self, _rows(X), y)
        check_classification_targets(y)
        self.image_shape_ = _image_shape(self.image_shape, X.shape[1], shape)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self.pixel_range_ = (0.0, 255.0) if X.dtype == np.uint8 else (float(X.min()), float(X.max()))
        self._seen = float(X.min()), float(X.max())
        self._size = _model_size(self.image_shape_, self.model, dict(self.model_options or {}))
        seed = int(check_random_state(self.random_state).randint(_SEEDS))
        fields: dict[str, Any] = dict(self.model_options or {})
        fields |= {"img_size": self._size, "in_chans": self.image_shape_[2], "num_classes": len(self.classes_)}
        changed = {name: getattr(self, name) for name in _OF_THE_RECIPE if getattr(self, name) is not None}
        self.result_ = fit(
            create_model(self.model, seed=seed, **fields),
            self._pixels(X),
            labels.astype(np.int64),
            recipe=self.recipe,
            threads=self._threads(),
            seed=seed,
            verbose=self.verbose,
            **changed,
        )
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class of `classes_` (n, classes).

        Warns
        -----
        UserWarning
            The pixels seem to be of another scale than those of the training images.
        """
        check_is_fitted(self)
        shape = _shape_of(X)
        if shape is not None and shape != self.image_shape_:
            raise UserError(f"images are {shape}; the classifier was trained on {self.image_shape_}")
        X = validate_data(self, _rows(X), reset=False)
        self._warn_of_scale(X)
        logits = self.result_.predict(self._pixels(X), self._threads())
        return softmax(logits.astype(np.float64), keep=False)[0]

    def predict(self, X: Any) -> Array:
        """Return the most probable label of each image (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def _threads(self) -> int | None:
        if self.n_jobs is None:
            return 1
        return None if self.n_jobs == -1 else self.n_jobs

    def _warn_of_scale(self, X: Array) -> None:
        """Warn if the rows `X` are of another scale than the training images, such as 0 to 1 and not 0 to 255."""
        first, last = self._seen
        low, high = float(X.min()), float(X.max())
        is_narrow = 0 < high - low < _NARROW * (last - first)
        is_beyond = False
        if low < self.pixel_range_[0] or high > self.pixel_range_[1]:
            distance = np.abs(X - X.clip(*self.pixel_range_).astype(np.float64)).mean()
            is_beyond = bool(distance > _BEYOND * (last - first))
        if is_narrow or is_beyond:
            warnings.warn(
                f"the pixels are from {low:g} to {high:g}, and those of training were from {first:g} to {last:g}: the "
                "classes are near chance if this is another scale",
                UserWarning,
                stacklevel=3,
            )

    def _pixels(self, X: Array) -> NDArray[np.uint8]:
        """Return the rows `X` as uint8 images of the size of the model."""
        low, high = self.pixel_range_
        if X.dtype != np.uint8 or self.pixel_range_ != (0.0, 255.0):
            share = (X.astype(np.float64) - low) / ((high - low) or 1.0)
            X = np.rint(255.0 * share.clip(0.0, 1.0)).astype(np.uint8)
        height, width, C = self.image_shape_
        images = np.zeros((len(X), *self._size, C), np.uint8)
        filled = np.zeros((len(X), height * width * C), np.uint8)
        filled[:, : X.shape[1]] = X
        images[:, :height, :width] = filled.reshape(len(X), height, width, C)
        return images


def _shape_of(X: Any) -> tuple[int, ...] | None:
    """Return (height, width, C) of an array of images, or None for rows."""
    shape = tuple(getattr(X, "shape", ()))
    return (*shape[1:], 1)[:3] if len(shape) in (3, 4) else None


def _rows(X: Any) -> Any:
    """Return images as rows; anything else is left for scikit-learn to check."""
    return X if _shape_of(X) is None else np.asarray(X).reshape(len(X), math.prod(X.shape[1:]))


def _model_size(shape: tuple[int, ...], model: str, options: dict[str, Any]) -> tuple[int, ...]:
    """Return the height and the width of images of `shape`, filled up so that patches of the model cover them."""
    patch = options.get("patch_size", get_config(model).patch_size)
    config = get_config(model, **options | {"img_size": patch})  # that of the preset need not fit this patch_size
    patches = config.patch_height, config.patch_width
    return tuple(P + -(-max(0, side - P) // S) * S for side, P, S in zip(shape, patches, config.stride, strict=False))


def _image_shape(given: tuple[int, ...] | None, features: int, images: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return (height, width, C) of the image in a row of `features`, or of `images`, which is None for rows."""
    if given is not None:
        shape = (*given, 1)[:3] if isinstance(given, Sequence) and len(given) in (2, 3) else ()
        if images is not None and shape != images:
            raise UserError(f"image_shape is {given}, but the images are {images}; leave image_shape out")
        if math.prod(shape) != features or not shape:
            raise UserError(
                f"image_shape is {given}, but a row has {features} numbers; expected (height, width) or "
                "(height, width, channels) with that product"
            )
        return shape
    if images is not None:
        return images
    for C in (1, 3):
        side = math.isqrt(features // C)
        if side * side * C == features:
            return side, side, C
    side = math.isqrt(features - 1) + 1
    warnings.warn(
        f"rows of {features} numbers are not a square image of one or three channels: they are filled up to {side} x "
        f"{side}; give image_shape=(height, width, channels) if they are images of another shape",
        UserWarning,
        stacklevel=3,
    )
    return side, side, 1
