"""What decides a training run."""

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from shardsieve.order import is_whole
from shardsieve.scores.inputs import one_of, plain_number

SCHEDULES = ("onecycle", "cosine")
ON_BATCHES = ("none", "crop", "flip")
AUGMENTS = (*ON_BATCHES, "resized", "trivial", "rand")
NORMALISE = ("half", "imagenet")
SHUFFLES = ("auto", "window", "global")
PRECISIONS = ("no", "bf16", "fp16")
_WARM = 0.3
_MOST_PIXELS = 65_535
_MOST = 2**63 - 1
_LAST_SEED = 2**32 - 2  # a second run for the ceiling has the next one


def make_plain(settings: Any) -> None:
    """Replace numpy's numbers in a dataclass: no JSON, and no file of a run, holds them."""
    for name, value in vars(settings).items():
        object.__setattr__(settings, name, _plain(value))


def _plain(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return plain_number(value)


def check_count(name: str, value: int, least: int) -> None:
    """Refuse anything but a whole number of at least `least`."""
    if not is_whole(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > _MOST:
        raise ValueError(f"{name} must be at most {_MOST}, got {value}")


def check_seed(seed: int) -> None:
    """Refuse a seed that numpy's global generator does not take."""
    check_count("seed", seed, 0)
    if seed > _LAST_SEED:
        raise ValueError(f"seed must be at most {_LAST_SEED}, got {seed}")


def check_number(name: str, value: float) -> None:
    """Refuse anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_pass(
    *,
    size: int | None,
    channels: int | None,
    precision: str,
    batch_size: int,
    workers: int,
    max_unreadable: int,
    normalise: str | None = None,
) -> None:
    """Refuse settings of a pass over all samples that are wrong for any network and store."""
    check_images(size, channels)
    if normalise is not None:
        check_normalise(normalise, channels)
    check_precision(precision)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("max_unreadable", max_unreadable, 0),
    ):
        check_count(name, value, least)


def check_images(size: int | None, channels: int | None) -> None:
    """Refuse images that no network can take; None leaves a number to the first image."""
    for name, value in (("size", size), ("channels", channels)):
        if value is not None and not is_whole(value):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}; leave it out for the image's")
    if size is not None and size > _MOST_PIXELS:
        raise ValueError(f"size must be at most {_MOST_PIXELS} pixels, got {size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}; leave it out for the image's")


def check_normalise(normalise: str, channels: int | None) -> None:
    """Refuse a normalisation that is none of `NORMALISE`, or not for so many channels."""
    one_of("normalise", normalise, NORMALISE)
    if normalise == "imagenet" and channels not in (None, 3):
        raise ValueError(
            f"normalise must be half for {channels}-channel images, got 'imagenet', which is for "
            "3; or set channels to 3"
        )


def check_precision(precision: str) -> None:
    """Refuse a precision that is none of `PRECISIONS`."""
    one_of("precision", precision, PRECISIONS)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a training run, besides store and keep set.

    Attributes:
        model: As in `load_model`.
        epochs: Passes over the keep set, at least 1.
        batch_size: Samples per rank and step, at least 2.
        learning_rate: The schedule's peak, above 0.
        schedule: `onecycle` or `cosine`, over the steps of the shortened run.
        momentum: Of SGD with Nesterov's step, in `[0, 1)`.
        weight_decay: Of every weight, at least 0.
        label_smoothing: In `[0, 1)`.
        size: Pixels per side; None takes the first sample's.
        channels: 3 or 1; None takes the first sample's.
        augment: `none`, `crop` (random, padded), `flip` (crop and mirror), `resized` (a random
            part of the image scaled to `size`, and mirrored: ImageNet's usual one, in the workers);
            `trivial` and `rand`, which are `resized` and then torchvision's TrivialAugmentWide or
            RandAugment; or `package.module:factory`, called with nothing, which returns what
            follows `resized`, from uint8 (c, h, w) to the same.
        precision: `no`, `bf16` or `fp16`.
        normalise: Of pixels in `[0, 1]`: `half` (0.5, 0.25) or `imagenet`, on the device.
        accumulate: Batches per optimiser step, at least 1.
        ema: Decay of a running average of the weights, in `[0, 1)`, which is then what is evaluated
            and saved; 0 keeps none.
        resolutions: Pairs (first epoch, pixels): images are scaled to so many pixels per side from
            that epoch on; before the first pair, and without any, they keep `size`.
        channels_last: Store images and weights channel by channel of a pixel, faster on GPUs.
        compile: Run the network through `torch.compile`.
        pseudo_labels: Name of stored pseudo-labels to train on; None trains on the labels.
        shuffle: `window`; `global`, every kept sample anywhere; or `auto`, which is `global` where
            shards are sorted by class so that windows hold few classes, else `window`.
        shuffle_window: Shards shuffled together; 0 keeps their order. Of a `.beton` the pages
            follow from the keep set.
        seed: Of weights, order and augmentation.
        max_unreadable: Samples to skip when they cannot be read; one more stops the run.
        workers: Loader processes per rank; decides nothing but speed.
    """

    model: str = "light"
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    schedule: str = "onecycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    size: int | None = None
    channels: int | None = None
    augment: str = "none"
    precision: str = "no"
    normalise: str = "half"
    accumulate: int = 1
    ema: float = 0.0
    resolutions: tuple[tuple[int, int], ...] = ()
    channels_last: bool = False
    compile: bool = False
    pseudo_labels: str | None = None
    shuffle: str = "auto"
    shuffle_window: int = 16
    seed: int = 0
    max_unreadable: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        counts = {"epochs": 1, "batch_size": 2, "workers": 0, "max_unreadable": 0}
        for name, least in {**counts, "accumulate": 1, "shuffle_window": 0}.items():
            check_count(name, getattr(self, name), least)
        check_seed(self.seed)
        check_images(self.size, self.channels)
        self._check_names()
        for name in ("learning_rate", "momentum", "weight_decay", "label_smoothing", "ema"):
            check_number(name, getattr(self, name))
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        self._check_resolutions()

    def _check_resolutions(self) -> None:
        for pair in self.resolutions:
            is_pair = (
                isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(is_whole, pair))
            )
            if not is_pair or pair[0] < 0 or not 0 < pair[1] <= _MOST_PIXELS:
                raise ValueError(
                    "resolutions must be pairs of whole numbers (first epoch, pixels), at most "
                    f"{_MOST_PIXELS} pixels, got {self.resolutions}"
                )
        begun = [epoch for epoch, _ in self.resolutions]
        if len(set(begun)) < len(begun):
            raise ValueError(f"resolutions must begin at different epochs, got {self.resolutions}")

    def _check_names(self) -> None:
        check_precision(self.precision)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("shuffle", self.shuffle, SHUFFLES)
        if self.augment not in AUGMENTS and ":" not in self.augment:
            raise ValueError(
                f"augment must be one of {', '.join(AUGMENTS)} or package.module:factory, "
                f"got {self.augment!r}"
            )
        check_normalise(self.normalise, self.channels)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that decide the result, JSON-ready."""
        settings = asdict(self)
        del settings["workers"], settings["max_unreadable"]
        if self.shuffle == "auto":  # runs of earlier releases do not say it
            del settings["shuffle"]
        return settings

    @property
    def augments_in_workers(self) -> bool:
        """Whether images are cropped where they are decoded, not as whole batches."""
        return self.augment not in ON_BATCHES

    def resolution(self, epoch: int) -> int | None:
        """Return the pixels per side that an epoch trains on; None leaves the images as they are.

        >>> [TrainConfig(resolutions=((2, 160),)).resolution(epoch) for epoch in (1, 2, 3)]
        [None, 160, 160]
        """
        begun = [pair for pair in self.resolutions if pair[0] <= epoch]
        return max(begun)[1] if begun else None

    def rate(self, progress: float) -> float:
        """Return the learning rate after a share of the run, in `[0, 1]`.

        A function of the share, not of counted steps: it stays right when a run goes on with
        another world size or batch size. OneCycle rises over 30 % of the run and falls to nearly
        nothing, both along a cosine (Smith and Topin, arXiv 1708.07120; torch's OneCycleLR).

        >>> TrainConfig(learning_rate=0.2, schedule="cosine").rate(0.5)
        0.1
        """
        if self.schedule == "cosine":
            return _between(self.learning_rate, 0, progress)
        if progress < _WARM:
            return _between(self.learning_rate / 25, self.learning_rate, progress / _WARM)
        return _between(self.learning_rate, self.learning_rate / 25e4, (progress - _WARM) / 0.7)


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1))) / 2
