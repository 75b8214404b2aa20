"""The second stage: train whatever there is time for, and keep it if it is better than the linear head."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionzoo.auto.data import LEAST_DEV, dev_fraction
from visionzoo.auto.features import feature_stream, features_at
from visionzoo.auto.heads import Heads, save_network
from visionzoo.auto.network import fill_head
from visionzoo.auto.recipes import (
    ENOUGH_EPOCHS,
    LEAST_EPOCHS,
    DataFacts,
    Method,
    Recipe,
    affordable_epochs,
    minutes,
    reading_processes,
    recipe,
    wanted_epochs,
)
from visionzoo.auto.result import Trial
from visionzoo.auto.session import Session, in_words
from visionzoo.auto.trial import Outcome, TooSlowError, train_recipe
from visionzoo.files import atomic_path, write_json
from visionzoo.models.bundle import read_config, write_calibration
from visionzoo.runs import RunFolder
from visionzoo.tasks.engine.interrupt import RunInterruptedError
from visionzoo.weights.preprocessing import read_json

#: Of a trial's folder.
RECIPE_FILE = "recipe.json"
#: Folder of the network that training starts from.
START = "start"
#: Least penalty of the head that training starts from. One that is fitted more freely is so sure of itself that the
#: first steps tear the features apart: with it 96.6 % in place of 95.2 on Imagenette, 90.1 of 87.4 on CIFAR-10.
_GENTLE = 0.1
#: Name of the last line: the winner once more, on all training images.
AGAIN = "again, on all images"
#: Files of a trial that become those of the run.
_KEPT_FILES = ("model.safetensors", "config.json", "config.yaml", "metrics.csv", "curves.png")
#: How often a run that turns out too slow is planned anew.
_PLANS = 3
#: Mirrored images are asked about where that takes less than this share of the minutes.
_MIRROR_SHARE = 0.02


@dataclass
class Tries:
    """Runs below ``trials/`` of a run folder.

    Args:
        session: what was asked, and the clock.
        heads: the first stage.
        folder: the run folder, which holds the linear head's network.
        resume_command: what a person types to go on.
    """

    session: Session
    heads: Heads
    folder: RunFolder
    resume_command: str
    kept: str  #: name of the trial whose model is in the run folder
    stopped: RunInterruptedError | None = None

    def run(self) -> None:
        """All methods, then the winner once more on all training images, as far as there is time."""
        session = self.session
        held = session.dev[1]
        if len(held) < LEAST_DEV:
            session.add(Trial(name="training", note=f"left out: {session.too_few}"))
            return
        self.facts = self._facts()
        best = rival = self._start()
        winner: Recipe | None = None
        for place, method in enumerate(sorted(session.methods, key=lambda name: self._done(name) is None)):
            made, outcome = self._try(method, rival, best, parts=len(session.methods) - place + 1)
            if self.stopped is not None:
                return
            if outcome is not None and outcome.accuracy > best:
                best, winner, self.kept = outcome.accuracy, made, method
                self._promote(method)
        if winner is not None:
            self._again(winner)

    # ---- where training starts -------------------------------------------------------------------------------------

    def _start(self) -> float:
        """Write the network that training starts from; gives the accuracy of its head on what recipes are chosen by."""
        session, (kept, held), classes = self.session, self.session.dev, len(self.session.classes)
        # not the head in the run folder, which knows the held-out images
        fill_head(session.network.model.to("cpu"), self.heads.fitted_on(kept, classes, least=_GENTLE))
        save_network(session.network, session.classes, None, self._at(START).path)
        return self.heads.right(self.heads.fitted_on(kept, classes), held)

    def _facts(self) -> DataFacts:
        session = self.session
        return DataFacts(
            images=len(session.dev[0]),
            classes=len(session.classes),
            pixels=session.photos.pixels,
            mirrors=self._mirrors(),
        )

    def _mirrors(self) -> bool:
        """Whether mirrored images still show their class, by the linear head on images that it was not fitted on.

        A number or a letter does not, and training on mirrored ones would teach what is wrong.
        """
        session, (kept, held) = self.session, self.session.dev
        most = int(_MIRROR_SHARE * session.request.minutes * 60 * session.speed)
        some = held[: min(256, max(LEAST_DEV, most))]
        values, seen, _ = features_at(
            feature_stream(session.network, session.device),
            len(some),
            lambda i: session.train.read(int(some[i])).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            lambda i: session.train.sample_id(int(some[i])),
            session.batch,
        )
        head = self.heads.fitted_on(kept, len(session.classes))
        labels = torch.from_numpy(session.train.targets[some[seen]].astype(np.int64))
        if len(labels) < LEAST_DEV:
            return True
        mirrored = float((head.logits(values).argmax(1) == labels).double().mean())
        return mirrored > self.heads.right(head, some[seen]) - 0.1

    # ---- one method ------------------------------------------------------------------------------------------------

    def _try(self, method: Method, rival: float, best: float, parts: int) -> tuple[Recipe | None, Outcome | None]:
        """Train by one method, within its part of the time."""
        session, (kept, held) = self.session, self.session.dev
        folder = self._at(method)
        if (done := self._done(method)) is not None:
            session.add(done)
            return self._saved_recipe(folder), Outcome(done.accuracy or 0.0, 0.0)
        made, speed, begun = self._saved_recipe(folder), session.training_speed, session.elapsed
        for plan in range(1, _PLANS + 1):
            patient = made is not None or plan == _PLANS  # what is half done is not begun again
            if made is None:
                epochs = self._epochs(method, parts, speed)
                if not epochs:
                    needs = minutes(method, LEAST_EPOCHS[method], len(kept), len(held), speed)
                    session.add(Trial(name=method, note=f"left out: it needs {in_words(needs)} at least"))
                    return None, None
                made = recipe(method, self.facts, epochs, precision=session.precision, workers=reading_processes())
            try:
                outcome = self._train(made, folder, {"dev_fraction": dev_fraction(len(session.train))}, best, patient)
            except TooSlowError as slow:  # planned anew, with the speed that was seen
                speed = slow.images_per_second(method, made.data["batch_size"])
                shutil.rmtree(folder.path)
                made = None
                continue
            except RunInterruptedError as stopped:
                self.stopped = stopped
                return None, None
            except ValueError as error:  # a backbone that adapters do not fit, a missing extra
                session.add(Trial(name=method, note=f"not possible: {error}"))
                return None, None
            line = Trial(name=method, setting=made.in_words, accuracy=outcome.accuracy, images=len(held), rival=rival)
            session.add(replace(line, minutes=session.elapsed - begun, note=outcome.note))
            return made, outcome
        raise AssertionError("the last plan is patient")

    def _epochs(self, method: Method, parts: int, speed: float) -> int:
        """How many there is time for: in one part of several, or, where these are not enough, in a larger one."""
        left, (kept, held) = self.session.left, self.session.dev
        found = [affordable_epochs(method, left / n, len(kept), len(held), speed) for n in range(parts, 0, -1)]
        enough = min(ENOUGH_EPOCHS[method], wanted_epochs(method, len(kept)))
        return next((epochs for epochs in found if epochs >= enough), found[-1])

    def _again(self, winner: Recipe) -> None:
        """The winner's recipe on all training images, those included that it was chosen by.

        Nothing is chosen by this run, so nothing is held out; its probabilities are mended by what the run before it
        found on images that it had not seen.
        """
        session, folder = self.session, self._at("again")
        saved = self._saved_recipe(folder)
        if (done := self._done(AGAIN)) is not None and saved == winner and folder.model.is_file():
            session.add(done)
            self._keep_again(winner)
            return
        if saved is not None and saved != winner:  # of a winner that has been beaten since
            shutil.rmtree(folder.path)
            saved = None
        began, images = session.elapsed, len(session.train)
        took = next(t.minutes for t in session.trials if t.name == winner.method)
        needs = took * images / len(session.dev[0])
        resumed = saved is not None
        if not resumed and needs > session.left:
            return
        calibration = read_config(self.folder.path).calibration
        try:
            self._train(winner, folder, {"dev_fraction": 0.0}, 0.0, patient=resumed)
        except TooSlowError:
            shutil.rmtree(folder.path)
            return
        except RunInterruptedError as stopped:
            self.stopped = stopped
            return
        if calibration is not None:
            write_calibration(folder.path, calibration)
        self._keep_again(winner)
        note = f"not held against any: {winner.method} with all {images:,} training images"
        session.add(Trial(name=AGAIN, setting=winner.in_words, note=note, minutes=session.elapsed - began))

    def _keep_again(self, winner: Recipe) -> None:
        self._promote("again")
        self.kept = f"{winner.method}, {AGAIN}"

    def _train(self, made: Recipe, folder: RunFolder, data: dict[str, Any], best: float, patient: bool) -> Outcome:
        session = self.session
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.path / RECIPE_FILE, made.to_dict())
        return train_recipe(
            made,
            folder,
            {**session.data_options, "eval_batch_size": session.batch, **data},
            self._network(made.method),
            deadline=time.monotonic() + 60 * max(session.left, 0.05),
            to_beat=best,
            patient=patient,
            seed=session.request.seed,
            device=session.device,
            resume_command=self.resume_command,
        )

    def _network(self, method: Method) -> dict[str, Any]:
        if method != "scratch":
            return {"weights": str(self._at(START).path)}
        known = self.session.network.model.architecture
        return {key: known[key] for key in ("backbone", "image_size", "global_pool")}

    # ---- files -----------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> RunFolder:
        return RunFolder(self.folder.path / "trials" / name)

    def _done(self, name: str) -> Trial | None:
        """What an earlier session has finished."""
        before = self.session.before
        found = () if before is None else before.trials
        return next((t for t in found if t.name == name and (t.accuracy is not None or name == AGAIN)), None)

    @staticmethod
    def _saved_recipe(folder: RunFolder) -> Recipe | None:
        """That of a run which has saved something; what is left of others is removed."""
        if not folder.last.is_file():
            shutil.rmtree(folder.path, ignore_errors=True)
            return None
        return Recipe(**read_json(folder.path / RECIPE_FILE))

    def _promote(self, name: str) -> None:
        """Make a trial's model that of the run."""
        for file in _KEPT_FILES:
            source: Path = self._at(name).path / file
            if source.is_file():
                with atomic_path(self.folder.path / file) as temporary:
                    shutil.copyfile(source, temporary)
