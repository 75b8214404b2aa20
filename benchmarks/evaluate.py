"""Score released checkpoints as timm's results tables do: the same resize, crop, interpolation and test size.

    python benchmarks/evaluate.py --models timm/resnet50.a1_in1k,vit_small_patch16_224,runs/mine --data.path IMAGENET \\
        --out results/released
    ... --data.path IMAGENET,IMAGENET_A,IMAGENET_V2 --data.classes auto        # several data sets
    ... --data.path IMAGENET --data.classes real                               # ReaL labels

A model is a name (``=weights`` behind it for other weights than the published, ``=random`` for none) or a run folder.
Data are whatever ``--data.path`` of classify takes, with WordNet's names as classes. ``docs/benchmarks.md`` says more.
The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison.options import Many, many, parse_options
from comparison.pieces import key_of
from script import exit_code

#: Columns of the table, timm's first.
HEADER = ("model", "data", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct")
MORE = ("interpolation", "ece", "classes", "images", "unreadable")


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The images."""

    path: Many  #: one or several, as classify takes them; of several splits the held-out one
    classes: Many = "auto"  #: one for all or one for each: auto, all, present, imagenet_a, imagenet_r, real


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Everything that can be said."""

    models: Many  #: names, ``name=weights``, or run folders
    data: EvaluationData
    out: str  #: folder of the results; the same command goes on there
    batch_size: int = 64  #: images at once
    limit: int | None = None  #: images of each data set, every class by its share; none for all
    device: str | None = None  #: none for a GPU where there is one


def evaluate(options: EvaluationOptions) -> int:
    """Score every model on every data set, and write ``results.csv`` and ``index.html``; 1 if any failed."""
    from released.identity import names_of, of_data
    from released.labels import RULES, question
    from released.page import write_results
    from released.scoring import Released, answer, held_out, score

    from visionzoo.files import write_csv

    check_counts(options.batch_size, options.limit)
    models = Released.parse_all(many("models", options.models, str))
    paths, rules = _listed(options.data.path), _listed(options.data.classes)
    if not paths:
        raise ValueError("data.path is empty; give one or more, with commas")
    if len(rules) not in (1, len(paths)) or set(rules) - set(RULES):
        raise ValueError(f"data.classes={','.join(rules)} must be one of {', '.join(RULES)}, for all data or for each")
    asked: dict[str, tuple[Any, Any]] = {}
    for name, path, rule in zip(names_of(paths), paths, rules * (len(paths) // len(rules)), strict=True):
        source = held_out(path, options.limit)
        asked[key_of(name, rule)] = source, question(source, rule)  # bad data are said before any work
    data = {name: of_data(source) for name, (source, _) in asked.items()}
    out = Path(options.out)
    (out / "answers").mkdir(parents=True, exist_ok=True)
    rows, problems = [], []
    for released in models:
        model: Any = None
        weights = released.digest
        for name, (source, what) in asked.items():
            limit = "" if options.limit is None else f"-{options.limit}"
            path = out / "answers" / f"{key_of(released.label, name)}{limit}.parquet"
            kept, of = path.is_file(), {"images": data[name], "weights": weights}
            try:
                if not kept:
                    model = released.build(options.device) if model is None else model
                    answer(model, source, what, options.batch_size, path, of)
                found = {"model": released.label, "data": name, **score(path, what, of)}
            except (ValueError, FileNotFoundError) as error:
                problems.append(f"{released.label} on {name}: {error}")
                print(problems[-1], file=sys.stderr, flush=True)
                continue
            rows.append(found)
            print(f"{released.label} on {name}: top-1 {found['top1']:.2f} %{' (kept)' if kept else ''}", flush=True)
    notes = [f"{name}: {what.note}" for name, (_, what) in asked.items() if what.note]
    header = [*HEADER, *MORE]
    write_csv(out / "results.csv", header, [[row[column] for column in header] for row in rows])
    page = write_results(out / "index.html", rows, notes, problems)
    print(f"written to {page}")
    return 1 if problems else 0


def check_counts(batch_size: int, limit: int | None) -> None:
    """Raises ValueError for less than one image."""
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _listed(value: Many) -> list[str]:
    """Like :func:`comparison.options.many`, with repetitions: one data set may be asked by several rules."""
    parts = [str(part).strip() for part in (value if isinstance(value, list) else str(value).split(","))]
    return [part for part in parts if part]


def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 if a model failed, 2 for the user's error, 130 when interrupted."""
    return exit_code(lambda: evaluate(parse_options(EvaluationOptions, argv, "python benchmarks/evaluate.py", __doc__)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
