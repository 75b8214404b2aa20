"""``visionzoo soup RUN RUN...``"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionzoo.cli.commands.arguments import Subparsers, add_json
from visionzoo.cli.commands.output import check_target, emit_json
from visionzoo.terminal import say, visible_name

if TYPE_CHECKING:
    from torch import Tensor

    from visionzoo.models.bundle import ModelConfig

#: task -> its scores, the first that is there decides, and whether a larger one is better.
SCORES: dict[str, tuple[tuple[str, ...], bool]] = {
    "classify": (("map", "accuracy"), True),
    "clip": (("accuracy", "recall_mean"), True),
    "segment": (("iou_1",), True),
    "ssl": (("knn_accuracy", "effective_rank"), True),
    "mae": (("loss",), False),
}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "soup",
        help="the mean of several runs, which is often better than each",
        description="Average the weights of runs that began with the same ones and learned the same task by other "
        "seeds or options (model soups, arXiv 2203.05482). --greedy takes the best run, then each that does not make "
        "the mean worse on held-out images, which are then no longer a fair test of it.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, two or more")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the run folder that is written; must not exist")
    parser.add_argument("--greedy", action="store_true", help="choose which runs by their scores on held-out images")
    parser.add_argument("--data.path", dest="path", metavar="PATH", help="for --greedy (default: the first run's data)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_target("--json", args.json, ".json")
    from visionzoo.export.folder import new_folder
    from visionzoo.models.bundle import write_bundle
    from visionzoo.models.soup import check_alike, greedy_soup, uniform_soup
    from visionzoo.runs.folder import RunFolder
    from visionzoo.runs.lineage import lineage_of_run, write_lineage
    from visionzoo.weights.local import local_source

    folders = [RunFolder.open(local_source(given, "classify")) for given in args.runs]
    paths = [folder.path for folder in folders]
    if args.greedy:
        task = {"simmim": "mae"}.get(name := check_alike(paths).task, name)
        if task not in SCORES:
            raise ValueError(f"--greedy has no score for the task {task!r}; leave it out for the mean of all runs")
        scorer = _Scorer(task, paths[0], args.path)
        soup = greedy_soup(paths, scorer, higher_is_better=SCORES[task][1])
    else:
        soup = uniform_soup(paths)
    ancestors = [lineage_of_run(folder) for folder in folders]
    with new_folder(args.out) as made:
        write_bundle(soup.weights, soup.config, made)
        if all(found is not None for found in ancestors):
            write_lineage(made, dict.fromkeys(a for found in ancestors for a in found or ()))
    names = [str(path) for path in soup.runs]
    if args.json != "-":
        kind = "greedy" if args.greedy else "uniform"
        say(f"{kind} soup of {len(names)} of {len(paths)} runs: {', '.join(map(visible_name, names))}")
        if soup.score is not None:
            say(f"{scorer.name} {soup.score:.4f} on the images that chose it")
        say(f"written to {args.out}")
    if args.json is not None:
        emit_json({"runs": names, "score": soup.score, "folder": args.out}, args.json)
    return 0


class _Scorer:
    """The score of weights by ``train.py TASK validate``."""

    def __init__(self, task: str, like: Path, path: str | None) -> None:
        self.task, self.path, self.name = task, path, ""
        self.config = like / "config.yaml"
        if path is None and not self.config.is_file():
            raise ValueError(f"{like} does not say what data it had; give --data.path for --greedy")

    def __call__(self, weights: Mapping[str, Tensor], config: ModelConfig) -> float:
        from visionzoo.cli.train import run as train
        from visionzoo.models.bundle import write_bundle
        from visionzoo.runs.folder import RunFolder
        from visionzoo.weights.preprocessing import read_json

        with tempfile.TemporaryDirectory() as folder:
            candidate, judged = Path(folder, "candidate"), RunFolder(Path(folder, "judged"))
            write_bundle(weights, config, candidate)
            given = [] if self.path is None else ["--data.path", self.path]
            base = ["--config", str(self.config)] if self.config.is_file() else []
            words = [self.task, "validate", *base, *given, "--model.weights", str(candidate)]
            if train([*words, "--run_dir", str(judged.path)]) != 0:
                raise ValueError("the runs could not be scored, as said above; give --data.path, or leave --greedy out")
            scores: dict[str, Any] = read_json(judged.results).get("scores", {})
        self.name = next((name for name in SCORES[self.task][0] if name in scores), "")
        if not self.name:
            raise ValueError(f"held-out images gave none of the scores {', '.join(SCORES[self.task][0])}")
        return float(scores[self.name])
