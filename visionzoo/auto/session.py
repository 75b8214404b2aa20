"""One session of ``visionzoo fit``: what was asked, what there is, and how much time is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from visionzoo.auto.data import LEAST_DEV, Photos, dev_fraction, dev_split, open_photos
from visionzoo.auto.features import feature_batch, feature_stream
from visionzoo.auto.network import Network, open_network
from visionzoo.auto.recipes import (
    LEAST_EPOCHS,
    SMALL,
    Method,
    minutes,
    wanted_epochs,
)
from visionzoo.auto.result import Fitted, Request, Trial
from visionzoo.auto.speed import images_per_second, training_precision
from visionzoo.data.sources.base import Source
from visionzoo.data.sources.split import limited
from visionzoo.inference.stream import Stream
from visionzoo.terminal import say, visible_name

#: Share of the minutes that features may take; beyond it images become smaller, or fewer.
_FEATURES = 0.5
#: The same where no training fits behind them.
_FEATURES_ALONE = 0.9
#: Pixels of the network's input where the minutes are short.
_SHORT_OF_TIME = 112
#: Epochs of training at 112 pixels that are worth more than a finer look and fewer epochs.
_FAIR_EPOCHS = 3
#: Seconds that writing the results takes, beside the images themselves.
_CLOSING = 8.0
#: Below this many images of a class adapters are tried before full fine-tuning: they overfit later.
_FEW = 50
#: Lines of warnings about the data that are shown.
_WARNINGS = 5


@dataclass
class Session:
    """What every stage needs. Made by :meth:`open`; stages add to ``trials``."""

    request: Request
    device: torch.device
    begun: float  #: by :func:`time.monotonic`
    before: Fitted | None  #: what an earlier session left
    photos: Photos
    network: Network
    stream: Stream
    batch: int  #: images sent through the network at a time
    speed: float  #: images per second, forward, reading included
    precision: str  #: of training
    training_speed: float  #: images per second of a forward pass in that precision
    too_large: int | None = None  #: pixels for which the minutes were too short
    train_limit: int | None = None  #: how many training images there is time for; None for all
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def open(cls, request: Request, device: torch.device, before: Fitted | None, begun: float) -> Session:
        """Open data and network, measure, and choose the size and number of the images.

        Raises:
            FileNotFoundError, ValueError: as :func:`open_photos` and :func:`open_network`.
        """
        photos = open_photos(request.path, request.val_path, request.seed)
        if before is not None and before.data != photos.fingerprint:  # what was tried was tried on others
            raise ValueError(
                f"{request.path} has other images or class names than when the run began; start a new run in another "
                "folder"
            )
        size = request.image_size if before is None else before.image_size
        found = cls._measured(request, device, before, begun, photos, size)
        if found.before is not None:
            return replace(found, train_limit=found.before.train_limit)
        if request.image_size is None and found._can_be_smaller() and found._should_be_smaller():
            smaller = cls._measured(request, device, before, begun, photos, _SHORT_OF_TIME)
            if photos.pixels <= SMALL or smaller._trains(_FAIR_EPOCHS):
                found = replace(smaller, too_large=min(found.network.model.preprocess.image_size))
        most = max(int(60 * found.speed * found._feature_room()), 2 * len(photos.classes))
        if found.too_slow(photos.labelled) and most < photos.labelled:
            return replace(found, train_limit=most)
        return found

    def _feature_room(self) -> float:
        """Minutes for features: half; but for the last look nine tenths, where no training fits into the other half."""
        half = _FEATURES * self.request.minutes
        used = int(60 * self.speed * half)
        held = round(dev_fraction(max(used, 1)) * used)
        least = min(minutes(m, LEAST_EPOCHS[m], used - held, held, self.training_speed) for m in self.methods)
        return half if least < half - self.closing else max(half, _FEATURES_ALONE * self.request.minutes - self.closing)

    @classmethod
    def _measured(
        cls,
        request: Request,
        device: torch.device,
        before: Fitted | None,
        begun: float,
        photos: Photos,
        image_size: int | None,
    ) -> Session:
        network = open_network(
            request.backbone, request.weights, image_size, len(photos.classes), photos.pixels, seed=request.seed
        )
        batch, stream = feature_batch(device), feature_stream(network, device)
        speed = images_per_second(stream, photos.train, batch)
        precision, gain = training_precision(network.model, device)
        return cls(request, device, begun, before, photos, network, stream, batch, speed, precision, gain * speed)

    def _can_be_smaller(self) -> bool:
        size = min(self.network.model.preprocess.image_size)
        return self.network.pretrained and self.network.any_size and size > _SHORT_OF_TIME

    def _should_be_smaller(self) -> bool:
        """Small images if even features take long, since they lose nothing; photographs if training has no time."""
        return self.too_slow(self.photos.labelled) if self.photos.pixels <= SMALL else not self._trains(_FAIR_EPOCHS)

    def _trains(self, epochs: int) -> bool:
        """Whether so many epochs of some method fit behind the features of all images."""
        images = self.photos.labelled
        held = round(dev_fraction(images) * images)
        room = self.left - self.feature_minutes(images)
        return held >= LEAST_DEV and any(
            minutes(m, epochs, images - held, held, self.training_speed) <= room for m in self.methods
        )

    def too_slow(self, images: int) -> bool:
        """Whether features of so many images take more than their share of the minutes."""
        return self.feature_minutes(images) > _FEATURES * self.request.minutes

    def feature_minutes(self, images: int) -> float:
        """What features of so many images take."""
        return images / self.speed / 60

    # ---- the clock -------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Minutes since this session began."""
        return (time.monotonic() - self.begun) / 60

    @property
    def closing(self) -> float:
        """Minutes of the last look at the held-out images."""
        return (self.final_count / self.speed + _CLOSING) / 60

    @property
    def left(self) -> float:
        """Minutes that are left for training."""
        return self.request.minutes - self.elapsed - self.closing

    # ---- the images ------------------------------------------------------------------------------------------------

    @property
    def final_count(self) -> int:
        """Images that are looked at once, at the end."""
        return 0 if self.photos.final is None else len(self.photos.final)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.photos.classes

    @cached_property
    def train(self) -> Source:
        """The training images that are used."""
        return limited(self.photos.train, self.train_limit, self.request.seed)

    @cached_property
    def dev(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the training images that recipes are trained on, and chosen by."""
        return dev_split(self.train, self.request.seed)

    @property
    def too_few(self) -> str:
        """Why nothing is trained where fewer than :data:`LEAST_DEV` images are there to choose by."""
        return f"{len(self.dev[1])} images to choose by are too few, {LEAST_DEV} are needed"

    @property
    def data_options(self) -> dict[str, Any]:
        """Of :class:`visionzoo.data.classify.ClassifyData`: which images."""
        return {"path": self.request.path, "val_path": self.request.val_path, "train_limit": self.train_limit}

    @property
    def methods(self) -> tuple[Method, ...]:
        """What can be trained, first what is more likely to win."""
        if not self.network.pretrained:
            return ("scratch",)
        return ("lora", "full") if self.photos.labelled / len(self.classes) < _FEW else ("full", "lora")

    # ---- what a person hears ---------------------------------------------------------------------------------------

    def say_plan(self) -> None:
        """Three lines, and what is odd about the data."""
        photos, report = self.photos, self.photos.report.splits["train"]
        if self.network.said:
            say(f"warning: {self.network.said}")
        for text in photos.report.warnings[:_WARNINGS]:
            say(f"warning: {visible_name(text)}")
        say(f"{self.network.origin}; {self.speed:.3g} images/s here")
        held = f"{self.final_count:,} held out, looked at once at the end" if self.final_count else "none is held out"
        say(
            f"{photos.labelled:,} images of {len(self.classes):,} classes to learn from, {held}; "
            f"{report.width[1]} x {report.height[1]} pixels at the median"
        )
        if self.too_large is not None:
            why = "their features" if self.photos.pixels <= SMALL else "training"
            say(
                f"shown at {_SHORT_OF_TIME} pixels in place of {self.too_large}, which leave no time for {why}; "
                f"--image-size {self.too_large} keeps them"
            )
        say(f"plan for {self.request.minutes:g} minutes: {', '.join(self._parts())}", flush=True)

    def _parts(self) -> list[str]:
        used = len(self.train)
        parts = [f"features {in_words(self.feature_minutes(used))}"]
        if self.train_limit is not None:
            every = self.feature_minutes(self.photos.labelled)
            parts[0] += f" (of {used:,} images; those of all take {in_words(every)})"
        left, held = self.left - self.feature_minutes(used), len(self.dev[1])
        if held < LEAST_DEV:
            parts.append(f"nothing trained ({self.too_few})")
            return [*parts, f"the held-out images {in_words(self.closing)}"]
        for method in self.methods:
            wanted = minutes(method, wanted_epochs(method, used - held), used - held, held, self.training_speed)
            least = minutes(method, LEAST_EPOCHS[method], used - held, held, self.training_speed)
            short = f"no time for {method} (it needs {in_words(least)})"
            parts.append(f"{method} (up to {in_words(min(wanted, left))})" if least < left else short)
        return [*parts, f"the held-out images {in_words(self.closing)}"]

    def add(self, trial: Trial) -> None:
        """A line of the table, said at once."""
        self.trials.append(trial)
        if trial.accuracy is None:
            say(f"{trial.name}: {trial.note}", flush=True)
        else:
            say(f"{trial.name}, {trial.setting}: {100 * trial.accuracy:.1f} % of {trial.images:,}", flush=True)


def in_words(minutes: float) -> str:
    """``"2.5 minutes"``, or ``"12 seconds"`` where there are few."""
    seconds = max(1, round(60 * minutes))
    return f"{minutes:.1f} minutes" if seconds >= 60 else f"{seconds} second{'' if seconds == 1 else 's'}"
