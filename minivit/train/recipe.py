"""A recipe: everything that determines the result of a training run, except for the images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from minivit.data.dataset import Dataset
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.config_checks import plain
from minivit.nn.layer import Layer
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.model import Model
from minivit.nn.presets import get_config
from minivit.nn.pretraining import masked_model
from minivit.nn.vit import ViT
from minivit.train.groups import parameter_groups
from minivit.train.muon import Muon
from minivit.train.optimizers import SGD, Adam, AdamW, Optimizer
from minivit.train.recipe_checks import check_recipe
from minivit.train.schedules import annealed, learning_rate
from minivit.weights.preprocessing import FITS


@dataclass(frozen=True)
class Recipe:
    """The settings of a run.

    On the host of one machine, with one NumPy build, two runs of the same recipe on the same images end in the same
    bits. On a GPU they also need the same precision and micro-batch (`Trainer`).

    Parameters
    ----------
    dataset : str
        "digits", "cifar10", "cifar100" or a path.
    model : str
        A preset; its classes, channels and image size are replaced by those of the data set.
    model_options : dict
        Other fields of `ViTConfig` that differ from the preset's. With an `img_size`, images are resized to it.
    task : str
        "" to train a classifier, or a task of pre-training without labels, "mpp", "mae" or "simmim"; then `model` is
        the encoder. See `minivit.nn.pretraining`.
    task_options : dict
        The arguments of the model of the task beside the encoder, such as ``{"ratio": 0.75}``.
    init : str
        The fingerprint of the model file that the run begins with; "" for random parameters. See
        `minivit.train.initial`.
    epochs, batch_size : int
        Passes over the training images; images in a step.
    optimizer : str
        "adamw", "adam", "sgd" or "muon".
    lr, weight_decay : float
        Largest learning rate; weight decay of matrices.
    betas : tuple of float
        The decay rates of the moving averages of Adam and AdamW, also beside Muon.
    momentum : float
        The momentum of SGD.
    muon_momentum : float
        The momentum of Muon.
    warmup_epochs : float
        Epochs over which the learning rate rises from zero.
    warmup_steps : int
        Number of warmup steps; 0 to use `warmup_epochs`.
    schedule : str
        "cosine", "linear", "constant" or "wsd", after the warmup, or "onecycle"; see `minivit.train.schedules`.
    decay_epochs : float
        Epochs at the end over which "wsd" lowers the learning rate to zero; 0 for a fifth of all epochs.
    decay_shape : str
        The shape of that decrease: "linear" or "1-sqrt".
    clip_norm : float
        Largest global norm of the gradients; 0 for no clipping.
    layer_decay : float
        The factor of the learning rate from a layer to the one before it; 1 for one rate. See `parameter_groups`.
    freeze : tuple of str
        Patterns of the names of parameters that stay as they are, such as "patch_embed.*" and "blocks.[0-5].*".
    ema_decay : float
        The factor of Polyak averaging; 0 for none. See `minivit.train.averaging`.
    swa_start : float
        The share of the epochs after which stochastic weight averaging begins; 0 for none.
    swa_lr : float
        The learning rate during stochastic weight averaging; 0 for that of the schedule.
    swa_anneal_epochs : int
        The epochs over which the learning rate goes from that of the schedule to `swa_lr`, by half a cosine.
    choose_by : str
        The validation metric that chooses the best epoch: "accuracy" or "loss".
    on_nan : str
        "stop", or "rollback": after NaN, go on from the end of the last epoch at half the learning rate; five times at
        most.
    label_smoothing : float
        See `ops.cross_entropy`.
    crop_padding : int
        Largest shift of an image, in pixels; 0 for none.
    flip : bool
        Whether half of the images are mirrored.
    resized_crop : tuple of float
        Smallest and largest share of the area of a random rectangle that is resized to the image; () for none.
    auto_augment : str
        "trivial" for TrivialAugment, "rand" for RandAugment, "" for none; see `ops.auto_augment`.
    rand_ops, rand_magnitude : int
        The number of ops of RandAugment for an image, and their magnitude, 0 to 30.
    color_jitter : float
        Largest change of brightness, contrast and saturation, as a share; 0 for none.
    erase_prob : float
        The probability that a rectangle of an image is erased.
    mixup_alpha, cutmix_alpha : float
        The parameters of mixup and cutmix, at most 4; 0 for none. With both, each is chosen for half of the steps.
    mix_prob : float
        The probability that the images of a step are mixed.
    augment_ramp : float
        Epochs over which the strength of augmentation grows from zero; see `minivit.train.augmentation`.
    augment_off_epochs : int
        Epochs at the end with nothing but crops and flips.
    validation : float
        Share of the training images that are held out to choose the best epoch.
    mean, std : tuple of float
        Mean and deviation of each channel for pixels from 0 to 1; () for those of the weights, else of the data set.
    crop_pct, crop_mode, interpolation
        How images are resized, as `save_model` describes it; 0 and "" for what the weights say, else 1, "center" and
        "bicubic".
    micro_batch : int
        Images that a worker takes at a time; 0 for the model's own number. It is part of the recipe because the bits
        depend on it. It has no effect on a device.
    reduction_groups : int
        Number of groups in which the gradients of micro-batches are added; 0 for the model's own number. The bits
        depend on it too. It has no effect on a device.
    dtype : str
        "float32" or "float64".
    seed : int
        The seed of the initial parameters, the validation split, the order of the images, augmentation and dropout.
    """

    dataset: str
    model: str
    model_options: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    task_options: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    muon_momentum: float = 0.95
    warmup_epochs: float = 1.0
    warmup_steps: int = 0
    schedule: str = "cosine"
    decay_epochs: float = 0.0
    decay_shape: str = "linear"
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()
    ema_decay: float = 0.0
    swa_start: float = 0.0
    swa_lr: float = 0.0
    swa_anneal_epochs: int = 10
    choose_by: str = "accuracy"
    on_nan: str = "stop"
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    resized_crop: tuple[float, ...] = ()
    auto_augment: str = ""
    rand_ops: int = 2
    rand_magnitude: int = 9
    color_jitter: float = 0.0
    erase_prob: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_prob: float = 1.0
    augment_ramp: float = 0.0
    augment_off_epochs: int = 0
    validation: float = 0.1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    crop_pct: float = 0.0
    crop_mode: str = ""
    interpolation: str = ""
    micro_batch: int = 0
    reduction_groups: int = 0
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))
        for name in ("betas", "freeze", "mean", "std", "resized_crop"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_recipe(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for a file."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` wrote.

        Raises
        ------
        UserError
            A field is unknown, missing or out of range.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise UserError(f"unknown fields of a recipe: {', '.join(sorted(unknown))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"not a recipe: {error}") from error

    def resolved(self, model: Model) -> Recipe:
        """Return the recipe with the model's own `micro_batch` and `reduction_groups` in place of zeros."""
        return replace(
            self,
            micro_batch=self.micro_batch or model.micro_batch,
            reduction_groups=self.reduction_groups or model.config.reduction_groups,
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are resized, as `save_model` takes it."""
        mode, interpolation = self.crop_mode or "center", self.interpolation or "bicubic"
        return {"crop_pct": self.crop_pct or 1.0, "crop_mode": mode, "interpolation": interpolation}

    @property
    def decoding(self) -> dict[str, Any]:
        """How images are resized, as `load_dataset` takes it, with their channels if the weights determine them."""
        said = self.preprocessing
        resizing = {"crop_fraction": said["crop_pct"], "fit": FITS[said["crop_mode"]]}
        in_chans = self.model_options.get("in_chans")
        channels = {"channels": in_chans} if self.init and in_chans in (1, 3) else {}  # files of others are converted
        return resizing | {"interpolation": said["interpolation"]} | channels

    @property
    def swa_epochs_before(self) -> int:
        """The number of epochs before stochastic weight averaging."""
        return int(self.epochs * self.swa_start + 1e-9)  # 100 * 0.29 is slightly less than 29

    def warmup(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the warmup."""
        return self.warmup_steps or round(self.warmup_epochs * steps_per_epoch)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of `step`, from 0.

        During stochastic weight averaging it is constant over an epoch, as with PyTorch's SWALR, once the warmup has
        ended.
        """
        rate = partial(
            learning_rate,
            total_steps=self.epochs * steps_per_epoch,
            lr=self.lr,
            warmup_steps=self.warmup(steps_per_epoch),
            schedule=self.schedule,
            decay_steps=round((self.decay_epochs or self.epochs / 5) * steps_per_epoch),
            decay_shape=self.decay_shape,
        )
        first = max(self.swa_epochs_before, -(-self.warmup(steps_per_epoch) // steps_per_epoch))
        if not (self.swa_start and self.swa_lr) or step < first * steps_per_epoch:
            return rate(step)
        epoch = step // steps_per_epoch - first
        return annealed(rate(first * steps_per_epoch), self.swa_lr, epoch, self.swa_anneal_epochs)

    def differences(self, options: dict[str, Any]) -> list[str]:
        """Return a line for each of `options` that differs from this recipe."""
        asked = replace(self, **options)
        return [
            f"{name} is {getattr(self, name)!r} in the run, {getattr(asked, name)!r} was asked for"
            for name in options
            if getattr(self, name) != getattr(asked, name)
        ]


def normalised(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Return the data set with the mean and deviation of the recipe, if it has them."""
    return replace(dataset, mean=recipe.mean, std=recipe.std) if recipe.mean else dataset


def model_config(recipe: Recipe, dataset: Dataset) -> ViTConfig:
    """Return the recipe's model with the data set's image size, channels and classes; an encoder has no classes.

    Raises
    ------
    UserError
        There is no such model, or the images do not fit the model or the augmentation of the recipe.
    """
    _, height, width, channels = dataset.train_images.shape
    classes = 0 if recipe.task else len(dataset.class_names)
    fitting = {"img_size": (height, width), "in_chans": channels, "num_classes": classes}
    config = get_config(recipe.model, **{**fitting, **recipe.model_options})
    for name, value in fitting.items():
        if getattr(config, name) != value:
            asked = getattr(config, name)
            if recipe.task and name == "num_classes":
                raise UserError("pre-training has no classes; leave num_classes out")
            if recipe.init and name != "num_classes":
                raise UserError(f"the weights are of a model with {name} {asked}, but {dataset.name} has {value}")
            raise UserError(f"{name} {asked} was asked for, but {dataset.name} has {value}; leave it out")
    expect_augmentable(recipe, height, width, channels)
    return config


def initial_model(recipe: Recipe, config: ViTConfig, dataset: Dataset, backend: str = "numpy") -> Model:
    """Return the recipe's model with initial parameters: a ViT of `config`, or a masked model with it as the encoder.

    Raises
    ------
    UserError
        The encoder or the options do not fit the task.
    """
    if not recipe.task:
        return ViT(config, recipe.seed, recipe.dtype, backend)
    options = dict(recipe.task_options)
    if recipe.task == MaskedPatches.task:  # it predicts colours
        options |= {"mean": dataset.mean, "std": dataset.std}
    return masked_model(recipe.task, config, recipe.seed, recipe.dtype, backend, **options)


def expect_augmentable(recipe: Recipe, height: int, width: int, channels: int) -> None:
    """Raise UserError where the augmentation of the recipe does not fit images of this size."""
    if recipe.crop_padding >= min(height, width):
        raise UserError(
            f"crop_padding {recipe.crop_padding} can shift all of an image of {height} x {width} pixels out of view"
        )
    if (recipe.auto_augment or recipe.color_jitter) and channels not in (1, 3):
        raise UserError(f"auto_augment and color_jitter need images of 1 or 3 channels, not of {channels}")


def make_optimizer(recipe: Recipe, model: Layer, threads: int = 1) -> Optimizer:
    """Return the recipe's optimiser for `model`, which leaves its frozen parameters as they are.

    Muon uses `threads` threads.
    """
    frozen = model.parameters.matching(*recipe.freeze)
    groups = parameter_groups(model, recipe.lr, recipe.weight_decay, recipe.layer_decay)
    groups = [group for group in groups if group.name not in frozen]
    if not groups:
        raise UserError(f"freeze {', '.join(recipe.freeze)} leaves no parameter to train")
    if recipe.optimizer == "sgd":
        return SGD(model, recipe.lr, recipe.momentum, groups=groups)
    if recipe.optimizer == "muon":
        muon = Muon(model, recipe.lr, recipe.muon_momentum, recipe.betas, groups=groups, threads=threads)
        if not muon.has_matrices:
            raise UserError(
                "no matrix of the blocks or the stem is trained, so that optimizer muon would be adamw; use that, and "
                "a lower lr"
            )
        return muon
    kind = AdamW if recipe.optimizer == "adamw" else Adam
    return kind(model, recipe.lr, recipe.betas, groups=groups)
