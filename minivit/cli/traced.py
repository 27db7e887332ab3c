"""What `minivit trace` and `minivit inspect` run: the model that a text names, and the images and labels for it."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.checking.constants import without_zeros
from minivit.cli.common import OpenedModel, check_backend, is_folder_of_images, model_path, open_model
from minivit.cli.images import image_files
from minivit.cli.model_fields import model_fields
from minivit.cli.terminal import Terminal
from minivit.data import load_dataset
from minivit.data.prepared import is_prepared
from minivit.data.scan import scan_folder
from minivit.errors import UserError, count_of, did_you_mean
from minivit.nn.masked import MaskedModel
from minivit.nn.model import Model
from minivit.nn.presets import PRESETS, create_model
from minivit.nn.vit import ViT
from minivit.ops.augment import channel_scale, normalized
from minivit.train.nan_dump import read_batch
from minivit.train.recipe import Recipe
from minivit.train.run_folder import RunFolder
from minivit.weights import load_masked_model, model_metadata
from minivit.weights.masked import MASKED
from minivit.weights.preprocessing import Preprocessing, preprocessing_of


class Subject(NamedTuple):
    """What is traced.

    Attributes
    ----------
    opened : OpenedModel
        The model, its class names and its preprocessing.
    pixels : Array
        uint8 (B, height, width, C), on the host; of a dump, the input of the model itself.
    names : list of str
        Of the images.
    labels : Array or None
        The known labels, or None.
    masked : MaskedModel or None
        Of a run of pre-training the whole model; that of `opened` is its encoder.
    """

    opened: OpenedModel
    pixels: Array
    names: list[str]
    labels: Array | None
    masked: MaskedModel | None = None

    @property
    def model(self) -> Model:
        """The model that is traced."""
        return self.opened.model if self.masked is None else self.masked

    @property
    def images(self) -> Array:
        """The input of the model: normalised, on its device."""
        model, _, preprocessing = self.opened
        values = model.parameters.store.values
        library = namespace(values)
        with on_device_of(values):
            if self.pixels.dtype.kind == "f":
                return to_backend(np.asarray(self.pixels, values.dtype), library)
            scale, shift = channel_scale(preprocessing.mean, preprocessing.std, values.dtype, library)
            return normalized(to_backend(np.asarray(self.pixels), library), scale, shift, values.dtype)


def open_subject(args: argparse.Namespace, terminal: Terminal) -> Subject:
    """Return the model and the images that the options of `minivit trace` and `minivit inspect` name."""
    check_backend(args.backend)
    for name in ("seed", "index"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}; expected at least 0")
    masked = _masked_model(args.target, args.checkpoint, args.backend)
    if masked is None:
        opened = open_target(args.target, args.checkpoint, args.backend, args.set, args.seed, terminal)
    else:
        path = model_path(args.target, args.checkpoint)
        preprocessing = preprocessing_of(path, model_metadata(path), masked.config)
        opened = OpenedModel(masked.encoder, None, preprocessing)
    if args.image:
        return Subject(opened, image_files(args.image, opened, terminal), args.image, None, masked)
    return _from_data(args.target, opened, args.data, args.index, args.seed, terminal)._replace(masked=masked)


def _masked_model(text: str, checkpoint: str, backend: str) -> MaskedModel | None:
    """Return the whole model of a run of pre-training, or of a folder in it, and None for everything else."""
    path = Path(text).expanduser()
    if text in PRESETS:
        return None
    if RunFolder.exists(path):
        is_masked = bool(RunFolder.open(path).recipe.task)
        path = model_path(text, checkpoint)
    else:
        is_masked = (path / MASKED).is_file()
    return load_masked_model(path / MASKED, backend=backend) if is_masked else None


def open_target(
    text: str, checkpoint: str, backend: str, fields: Sequence[str], seed: int, terminal: Terminal
) -> OpenedModel:
    """Return a preset with initial parameters, which is announced, or the model of a run or a file."""
    if text not in PRESETS:
        if not Path(text).expanduser().exists() and (near := did_you_mean(text, PRESETS)):
            raise UserError(f"there is no model, run or file {text};{near}")
        return open_model(text, checkpoint, backend, model_fields(fields), needs_head=False)
    model, filled = without_zeros(create_model(text, seed=seed, backend=backend, **model_fields(fields)))
    channels = model.config.in_chans
    terminal.say(f"{text} has its initial parameters, those of seed {seed}{filled}", style="dim")
    return OpenedModel(model, None, Preprocessing((0.5,) * channels, (0.5,) * channels))


def _from_data(text: str, opened: OpenedModel, data: str | None, index: int, seed: int, terminal: Terminal) -> Subject:
    """Return a test image of the data set of the run `text`; if there is none, random pixels, which is announced.

    For a dump of `minivit.train.nan_dump`, return the images of its trace.
    """
    path = Path(text).expanduser()
    if (path / "batch.npz").is_file():
        return _of_dump(path, opened, terminal)
    if not RunFolder.exists(path):
        why = f"{text} is not a run" if text not in PRESETS else "a new model has no data set"
        return _random_pixels(opened, seed, why, terminal)
    recipe = RunFolder.open(path).recipe
    try:
        return _of_data_set(recipe, opened, data, index, terminal)
    except _NoSuchImageError:
        raise
    except _OtherChannelsError as error:
        return _random_pixels(opened, seed, str(error), terminal)
    except UserError:
        return _random_pixels(opened, seed, f"the data set {recipe.dataset} is not at hand", terminal)


def _of_data_set(recipe: Recipe, opened: OpenedModel, data: str | None, index: int, terminal: Terminal) -> Subject:
    """Return the test image `index` of the data set of a run; UserError if it cannot be read."""
    name = recipe.dataset
    is_folder = is_folder_of_images(name)
    if is_folder and not is_prepared(Path(name)):
        return _of_folder(name, opened, index, terminal, labels=not recipe.task)
    config = opened.model.config
    given: dict[str, Any] = dict(opened.preprocessing.decoding)
    if is_folder:  # a prepared one, of which only the image that is shown is read
        given |= {"stream": True, "labels": not recipe.task}
        given |= {"channels": 3} if config.in_chans == 3 else {}  # greyscale images are shown as RGB
    size = config.height, config.width
    dataset = load_dataset(name, data_dir=data, download=False, image_size=size, **given)
    if dataset.test_images.shape[3] != config.in_chans:
        raise _OtherChannelsError(f"the images of {dataset.name} have other channels")
    _check_index(index, len(dataset.test_images), dataset.name)
    labels = _known_labels(dataset.class_names, int(dataset.test_labels[index]), opened)
    shown = [f"test image {index} of {dataset.name}"]
    return Subject(opened, np.asarray(dataset.test_images[index : index + 1]), shown, labels)


def _random_pixels(opened: OpenedModel, seed: int, why: str, terminal: Terminal) -> Subject:
    config = opened.model.config
    pixels = np.random.default_rng(seed).integers(0, 256, (1, config.height, config.width, config.in_chans), np.uint8)
    terminal.say(f"the image is of random pixels: {why}; give one with --image", style="dim")
    return Subject(opened, pixels, ["random pixels"], None)


def _of_dump(folder: Path, opened: OpenedModel, terminal: Terminal) -> Subject:
    batch = read_batch(folder)
    traced = batch["traced"]
    images, labels = batch["images"][traced], batch["labels"][traced]
    config = opened.model.config
    if images.shape[1:] != (config.height, config.width, config.in_chans) or len(labels) != len(images):
        raise UserError(f"{folder / 'batch.npz'} does not fit the model beside it; bring the run's own file back")
    terminal.say(
        f"step {int(batch['step'])}: {batch['where']}; {count_of(len(traced), 'image')} of its batch", style="dim"
    )
    names = [f"{batch['part']} image {sample}" for sample in batch["samples"][traced]]
    return Subject(opened, images, names, labels if labels.ndim == 1 else labels.argmax(axis=1))


class _NoSuchImageError(UserError):
    """The number of the test image is too large."""


class _OtherChannelsError(UserError):
    """The images of the data set are of colours, and the model takes greyscale images, or the reverse."""


def _check_index(index: int, count: int, name: str) -> None:
    if not 0 <= index < count:
        raise _NoSuchImageError(f"--index is {index}; {name} has {count:,} test images, 0 to {count - 1}")


def _of_folder(name: str, opened: OpenedModel, index: int, terminal: Terminal, labels: bool) -> Subject:
    classes = scan_folder(Path(name), labels).test
    files = [(file.path, label) for label, each in enumerate(classes.values()) for file in each]
    _check_index(index, len(files), name)
    file, label = files[index]
    return Subject(opened, image_files([file], opened, terminal), [file], _known_labels(list(classes), label, opened))


def _known_labels(names: Sequence[str], label: int, opened: OpenedModel) -> Array | None:
    """Return the number in the model of the class `label` of a data set whose classes are `names`, or None."""
    if opened.class_names is None:
        return np.array([label])
    name, *known = (unicodedata.normalize("NFC", name) for name in (names[label], *opened.class_names))
    return np.array([known.index(name)]) if name in known else None


def with_labels(subject: Subject, given: Sequence[str], terminal: Terminal) -> Subject:
    """Return `subject` with its labels: those in `given`, else the known ones, else the model's predictions.

    A predicted label is announced on the terminal. A model without a head gets no labels; that is announced too.

    Raises
    ------
    UserError
        A label is not a class of the model, or the numbers of labels and images differ.
    """
    model, names, _ = subject.opened
    if subject.masked is not None:
        if given:
            raise UserError("--label: a model of masked pre-training has no classes; leave --label out")
        return subject._replace(labels=None)
    if not model.config.num_classes:
        if given:
            raise UserError("--label: the model has no head and so no classes; leave --label out")
        words = "the model has no head, so that there is no loss and no gradient; --set num_classes=N adds a head"
        terminal.say(words, style="dim")
        return subject._replace(labels=None)
    if not given and subject.labels is not None:
        return subject
    if not given:
        labels = to_host(model(subject.images)).argmax(axis=-1)
        words = ", ".join(dict.fromkeys(class_name(names, int(label)) for label in labels))
        terminal.say(
            f"the loss is that of the model's own prediction, {words}; give the class with --label", style="dim"
        )
        return subject._replace(labels=labels)
    if len(given) not in (1, len(subject.pixels)):
        images = count_of(len(subject.pixels), "image")
        raise UserError(f"{len(given)} labels were given for {images}; give one for each, or one")
    numbers = [_label(text, names, model) for text in given]
    return subject._replace(labels=np.array(numbers * (len(subject.pixels) if len(numbers) == 1 else 1)))


def class_name(names: tuple[str, ...] | None, label: int) -> str:
    """Return the name of a class, or its number."""
    name = str(label) if names is None else names[label]
    return f"class {name}" if name.isdecimal() else name


def _label(text: str, names: tuple[str, ...] | None, model: ViT) -> int:
    count = model.config.num_classes
    if names is not None and text in names:
        return names.index(text)
    if text.isdecimal():
        if int(text) < count:
            return int(text)
        raise UserError(f"--label is {text}; the model has {count:,} classes, 0 to {count - 1}")
    near = did_you_mean(text, names or ())
    raise UserError(f"--label is {text!r}, which is not a class of the model;{near or ' give its number'}")


def parse_replacements(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of texts such as "blocks.3.attn=y.npy"."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals:
            raise UserError(f"--replace {text}: expected NAME=FILE.npy")
        try:
            found[name] = np.load(Path(file).expanduser(), allow_pickle=False)
        except OSError as error:
            raise UserError(f"--replace {text}: {file} cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise UserError(f"--replace {text}: {file} is not a NumPy array that `np.save` wrote") from None
        if not isinstance(found[name], np.ndarray):
            raise UserError(f"--replace {text}: {file} holds several arrays; give a file of one, that `np.save` wrote")
    return found


def parse_factors(texts: Sequence[str]) -> dict[str, float]:
    """Return the factors of texts such as "blocks.3.attn.dy=0.5"."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise UserError(f"--scale {text}: expected NAME=NUMBER")
    return found
