"""From a plan to a folder of results: check, measure, train, evaluate, report."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import machine, matmul_peak

from comparison import pieces
from comparison.models import Entry, describe, resolve
from comparison.options import LATER, PRETRAINED, Plan
from comparison.pieces import Piece, Store
from comparison.pretraining import methods
from comparison.report import write_report
from comparison.specs import Specs
from visionzoo.data.sources.base import fingerprint
from visionzoo.data.sources.open import open_data
from visionzoo.files import write_json

__all__ = ["compare"]

PACE_STEPS = 12
#: Of a training: fewer could not be timed.
LEAST_STEPS = 5
#: For the first estimate: seconds that a process needs before it trains, and the share of the matrix peak it reaches.
START_SECONDS, SHARE_OF_PEAK = 10.0, 0.25


class Comparison:
    """One comparison on its way."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = print) -> None:
        """
        Raises:
            ValueError, FileNotFoundError: for anything that can be seen before the first run.
        """
        self.plan, self.options, self.say = plan, plan.options, say
        self.out = Path(self.options.out)
        names = list(dict.fromkeys(resolve(n) for n in plan.models))
        self.data = self._open_data()
        self.entries = [describe(n, self.options.image_size, self.data["classes"]) for n in names]
        self.methods: dict[str, str] = {}  #: how networks are pretrained, by name
        if PRETRAINED in plan.recipes:
            self.methods, _ = methods(self.entries, self.options.image_size, self.options.pretrain.method)
        self._check_fractions()
        self._check_settings()
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        here = machine(plan.device, ("onnx", "onnxruntime") if plan.exported else ())
        self.store = Store(self.out, here, plan.device, self.options.threads)
        self.specs = Specs(plan, self.data, self.methods, self.store)
        self.seconds: list[float] = []  #: of each training here, for the estimate
        self.trials: dict[str, dict[str, Any]] = {}  #: records of trial runs that failed, by key

    # ---- checks -----------------------------------------------------------------------------------------------------

    def _open_data(self) -> dict[str, Any]:
        path = self.options.data.path
        splits = open_data(path, val_path=self.options.data.val_path)  # not the datamodule: Lightning takes seconds
        if splits.multi_label:
            raise ValueError(f"{path} has several labels per image; the comparison needs one")
        if splits.val is None or splits.train is None:
            raise ValueError(f"{path} needs training and held-out images")
        return {
            "name": Path(path).name or path,
            "classes": len(splits.classes),
            "train_images": len(splits.train),
            "held_out_images": len(splits.val),
            "fingerprint": fingerprint(splits),
        }

    def _check_fractions(self) -> None:
        for share in sorted({f for shares in self.plan.fractions.values() for f in shares}):
            images = round(share * self.data["train_images"])
            if images < self.data["classes"]:
                least = self.data["classes"] / self.data["train_images"]
                raise ValueError(
                    f"fraction {share:g} leaves {images} of {self.data['train_images']} training images, fewer than "
                    f"the {self.data['classes']} classes; give {least:.2g} or more"
                )

    def _check_settings(self) -> None:
        path = self.out / "settings.json"
        now = json.loads(json.dumps({**_flat(self.plan.settings()), "data": self.data}))
        if not path.is_file():
            write_json(path, now)
            return
        then = json.loads(path.read_text())
        both = {**then, **now}
        later = {k for k in both if k.startswith(LATER) and not (k in then and k in now)}
        changed = [
            f"{k} was {then.get(k)} and is {now.get(k)}" for k in both if then.get(k) != now.get(k) and k not in later
        ]
        if changed:
            raise ValueError(
                f"{self.out} holds results of other options: {'; '.join(changed)}. Give another --out, or those options"
            )
        if both != then:
            write_json(path, both)

    # ---- pieces ----------------------------------------------------------------------------------------------------

    def steps(self, entry: Entry, column: str, fraction: float) -> int | None:
        """Optimizer steps of a model's budget on a share of the images; None if the trial that tells could not be made.

        Raises:
            ValueError: for a budget of minutes that is over before it has begun.
        """
        budget = self.options.budget
        share = fraction**budget.share_exponent
        if budget.steps is not None:
            return max(round(budget.steps * share), LEAST_STEPS)
        assert budget.minutes is not None
        like = "equal" if column == PRETRAINED else column  # which has the same recipe, and nothing to wait for
        # always of the same seed, so that seeds that are added later make as many steps
        trial = self.specs.training(entry, like, 0, 1.0, PACE_STEPS, kind="pace")
        record = self.do(trial)
        if record["status"] != "done":
            self.trials[trial.key] = record
            return None
        steps = int(60 * budget.minutes * share / record["result"]["seconds_per_step"])
        if steps < LEAST_STEPS:
            raise ValueError(f"{entry.label} makes {steps} steps in {budget.minutes:g} minutes; give it more")
        return steps

    def do(self, piece: Piece) -> dict[str, Any]:
        """The record of a piece, from its file or by doing it."""
        return self.store.finished(piece) or self.do_anew(piece)

    def do_anew(self, piece: Piece) -> dict[str, Any]:
        """The record of a piece, by doing it."""
        record = self.store.run(piece)
        if record["status"] == "done":
            shutil.rmtree(self.store.work / piece.key)  # checkpoints and weights, of which there would be many
        return record

    # ---- the whole --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Do what is not done yet and write the report. Returns 1 if anything failed but for memory."""
        todo = [
            (entry, column, seed, fraction)
            for seed in self.plan.seeds  # a whole table of one seed first: an interrupted comparison is a smaller one
            for entry in self.entries
            for column, shares in self.plan.fractions.items()
            if column != PRETRAINED or entry.name in self.methods
            for fraction in reversed(shares)
        ]
        kept = sum(self.store.finished(self.specs.training(*one, steps=0)) is not None for one in todo)
        self.say(self._opening(todo, kept))
        records = [self._speed(entry, job) for entry in self.entries for job in ("inference", "training")]
        misfits = {r["about"]["model"] for r in records if r["status"] == pieces.OUT_OF_MEMORY}
        trained: list[dict[str, Any]] = []
        pretrained: dict[tuple[Entry, int], dict[str, Any]] = {}
        left = len(todo) - kept
        for number, one in enumerate(todo, 1):
            entry, column, seed, fraction = one
            name = f"[{number}/{len(todo)}] {entry.label}, {column} recipe, seed {seed}, {fraction:.0%} of the images"
            steps = self.steps(entry, column, fraction)
            if steps is None:
                self.say(f"{name}: left out, its trial run failed")
                continue
            piece = self.specs.training(*one, steps=steps)
            before = self.store.finished(piece)
            if column == PRETRAINED:
                first = pretrained.get((entry, seed))
                if first is None or first["status"] == "done":  # what failed waits for the next command
                    first = pretrained[entry, seed] = self._pretrain(entry, seed, needed=before is None)
                if first["status"] != "done":
                    self.say(f"{name}: left out, its pretraining is not there: {first['status']}")
                    continue
            start = time.monotonic()
            record = before or self.do(piece)
            trained.append(record)
            if before is None:
                left -= 1
                self.seconds.append(time.monotonic() - start)
            self.say(f"{name}: {self._outcome(record, before is not None, left)}")
        everything = [*records, *self.trials.values(), *pretrained.values(), *trained, *self._probes()]
        failed = [r for r in everything if r["status"] == "failed"]
        page = write_report(self.out, self.plan, self.entries, self.data, everything)
        self.say(f"{len(failed)} failed; see 'why' in {self.out / 'pieces'}" if failed else "all done")
        if misfits:
            self.say(f"out of memory: {', '.join(sorted(misfits))}")
        self.say(f"written to {page}")
        return 1 if failed else 0

    def _pretrain(self, entry: Entry, seed: int, *, needed: bool) -> dict[str, Any]:
        """The record of a pretraining, which is done again if its weights are needed and no longer there."""
        piece = self.specs.pretraining(entry, seed)
        before = self.store.finished(piece)
        gone = before is not None and before["status"] == "done" and not self.store.weights(piece.key).is_dir()
        if before is not None and not (needed and gone):
            return before
        record = self.do_anew(piece)
        text = record["status"]
        if text == "done":
            text = f"{record['result']['train_seconds'] / 60:.1f} minutes of training"
        self.say(f"{entry.label}, pretraining by {self.methods[entry.name]}, seed {seed}: {text}")
        return record

    def _probes(self) -> list[dict[str, Any]]:
        """The rows of the frozen backbone: last, since they wait for no other and none waits for them."""
        found = []
        for fraction in reversed(self.plan.probe_fractions):
            for seed in self.plan.seeds:
                piece = self.specs.probing(seed, fraction)
                before = self.store.finished(piece)
                found.append(before or self.do(piece))
                name = f"{self.options.probe.model}, frozen, seed {seed}, {fraction:.0%} of the images"
                self.say(f"{name}: {found[-1]['status']}{' (kept)' if before else ''}")
        return found

    def _speed(self, entry: Entry, job: str) -> dict[str, Any]:
        piece = self.specs.speed(entry, job)
        before = self.store.finished(piece)
        record = before or self.do(piece)
        text = record["status"]
        if record["status"] == "done":
            text = f"{record['result']['images_per_second']:,.0f} images/s"
        self.say(f"{entry.label}, {job}: {text}{' (kept)' if before else ''}")
        return record

    def _outcome(self, record: dict[str, Any], kept: bool, left: int) -> str:
        if record["status"] != "done":
            return " ".join(filter(None, (record["status"], record.get("why"))))
        text = f"{record['result']['accuracy']:.1%}"
        if kept:
            return f"{text} (kept)"
        typical = statistics.median(self.seconds)
        return f"{text} in {self.seconds[-1]:.0f} s" + (f"; about {_span(left * typical)} left" if left else "")

    def _opening(self, todo: Sequence[tuple[Entry, str, int, float]], kept: int) -> str:
        budget, runs = self.options.budget, len(todo)
        if budget.minutes is not None:
            seconds = (60 * budget.minutes + START_SECONDS) * runs
            what = f"{budget.minutes:g} minutes"
        else:
            assert budget.steps is not None
            peak = matmul_peak(torch.float32, self.plan.device) * SHARE_OF_PEAK
            counts = [(e, self.steps(e, column, fraction) or 0) for e, column, _, fraction in todo]
            # forward 2, backward 4 per product
            counts += [
                (e, self.options.pretrain.steps or 0)
                for e in self.entries
                if e.name in self.methods
                for _ in self.plan.seeds
            ]
            flops = sum(6e9 * e.gmacs * steps * budget.batch_size for e, steps in counts)
            seconds = flops / peak + runs * START_SECONDS
            what = f"{budget.steps:,} steps of {budget.batch_size} images"
        seconds = seconds * (runs - kept) / runs + 2 * START_SECONDS * len(self.entries)
        done = f", {kept} of them kept from before" if kept else ""
        first = ""
        if self.methods:
            first = (
                f", {len(self.methods) * len(self.plan.seeds)} pretrainings of {self.options.pretrain.steps:,} steps"
            )
        more = ["answers"]  # to held-out images, and to corrupted copies
        if self.plan.exported:
            more.append(f"exports as {' and '.join(self.plan.exported)}")
        if self.plan.probe_fractions:
            more.append(
                f"{len(self.plan.probe_fractions) * len(self.plan.seeds)} linear classifiers on a frozen backbone"
            )
        and_more = f", not counting {', '.join(more)}"
        return (
            f"{runs} training runs ({len(self.entries)} models, {len(self.plan.seeds)} seeds){done}, each of {what} at "
            f"{self.options.image_size} pixels on {self.data['name']}{first}, and {2 * len(self.entries)} measurements "
            f"of speed: very roughly {_span(seconds)}{and_more}"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def compare(plan: Plan) -> int:
    """Run a comparison, see :class:`Comparison`."""

    def say(text: str) -> None:
        print(text, flush=True)

    return Comparison(plan, say).run()
