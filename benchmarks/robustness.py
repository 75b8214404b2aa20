"""What released models, or your runs, make of changed images: where CNNs and Transformers differ most.

    python benchmarks/robustness.py --models timm/resnet50.a1_in1k,vit_small_patch16_224 --data.path IMAGENET \\
        --out results/robust --baseline timm/resnet18.tv_in1k --ood_path TEXTURES

ImageNet-C with mCE against the baseline, patches left out and shuffled, shape against texture, detail, PGD, images of
none of the classes, calibration, agreement of errors, CKA between layers, other input sizes, a linear classifier on
another data set, attention beside class-activation maps. ``docs/benchmarks.md`` says how each is
defined. The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison.options import Many, many, parse_options
from evaluate import EvaluationData, check_counts
from script import exit_code

from visionzoo.data.sources.base import Splits, fingerprint
from visionzoo.files import write_json


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions:
    """Everything that can be said."""

    models: Many  #: names, ``name=weights``, or run folders, which are asked for their own labels
    data: EvaluationData  #: one data set
    out: str  #: folder of the results; the same command goes on there
    looks: Many = "all"  #: all, or some of those that docs/benchmarks.md names
    baseline: str | None = None  #: one of the models, whose mCE is 100; none for plain errors
    ood_path: str | None = None  #: images of none of the classes
    transfer_path: str | None = None  #: another labelled data set, with training and held-out images
    limit: int | None = 500  #: images, every class by its share; none for all
    batch_size: int = 64  #: images at once
    device: str | None = None  #: none for a GPU where there is one


def study(options: RobustnessOptions) -> int:
    """Do what is not done yet, and write ``results.json`` and ``index.html``."""
    from released.identity import answerable, of_data
    from released.page import write_robustness
    from released.robust import LOOKS, Study
    from released.scoring import Released, held_out
    from released.subject import Subject

    wanted = many("looks", options.looks, str)
    paths_of = {"ood": options.ood_path, "transfer": options.transfer_path}
    wanted = [n for n in LOOKS if paths_of.get(n, "") is not None] if wanted == ["all"] else wanted
    if unknown := sorted(set(wanted) - set(LOOKS)):
        raise ValueError(f"looks={unknown[0]} must be all, or some of {', '.join(LOOKS)}")
    if "ood" in wanted and options.ood_path is None:
        raise ValueError("looks=ood needs ood_path, images of none of the classes")
    if "transfer" in wanted and options.transfer_path is None:
        raise ValueError("looks=transfer needs transfer_path, another data set with training and held-out images")
    check_counts(options.batch_size, options.limit)
    models = Released.parse_all(many("models", options.models, str))
    if options.baseline is not None and options.baseline not in [m.label for m in models]:
        raise ValueError(f"baseline={options.baseline} must be one of the models: {', '.join(m.label for m in models)}")
    paths, rules = many("data.path", options.data.path, str), many("data.classes", options.data.classes, str)
    if len(paths) != 1 or len(rules) != 1:
        raise ValueError(f"data.path={','.join(paths)} and data.classes={','.join(rules)} must be one data set")
    path, rule = paths[0], rules[0]
    source = answerable(held_out(path, options.limit), rule)
    subjects = [Subject(m, source, rule, options.device, options.batch_size) for m in models]
    for subject in subjects:
        assert subject.question is not None  # labels that do not fit are said before any work
    others = {name: data for name, data in _others(options).items() if name in wanted}
    settings = {"data": Path(path).name, "images": len(source), "classes": rule}
    settings |= {"fingerprint": of_data(source)}
    settings |= {f"weights of {model.label}": model.digest for model in models}
    settings |= {
        name: {"name": Path(str(paths_of[name])).name, "fingerprint": fingerprint(data)}
        for name, data in others.items()
    }
    out = Path(options.out)
    (out / "pieces").mkdir(parents=True, exist_ok=True)
    settings = _all_settings(out / "settings.json", settings)
    study = Study(subjects, out, lambda text: print(text, flush=True))
    found = study.run(wanted, others)
    write_json(out / "results.json", {**settings, "baseline": options.baseline, "models": found})
    pictures = study.pictures if "maps" in wanted else ()
    print(f"written to {write_robustness(out / 'index.html', found, options.baseline, settings, pictures)}")
    return 0


def _others(options: RobustnessOptions) -> dict[str, Splits]:
    """Look -> the data that it needs beside those that are scored, as far as they were given.

    Raises:
        ValueError, FileNotFoundError: for data that cannot be had or do not fit.
    """
    from released.identity import readable
    from released.scoring import at_most

    from visionzoo.data.sources.open import open_data

    found = {}
    if options.ood_path is not None:
        found["ood"] = Splits(val=readable(at_most(open_data(options.ood_path, "images").first, options.limit)))
    if (path := options.transfer_path) is not None:
        data = open_data(path)
        if data.multi_label or data.train is None or data.val is None:
            raise ValueError(f"transfer_path={path} must have training and held-out images with one label each")
        found["transfer"] = Splits(train=at_most(data.train, options.limit), val=at_most(data.val, options.limit))
    return found


def _all_settings(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What is asked, with what was asked before in the same folder.

    Raises:
        ValueError: if results there are of something else.
    """
    then = json.loads(path.read_text()) if path.is_file() else {}
    if changed := [k for k in now if k in then and then[k] != now[k]]:
        key = changed[0]
        raise ValueError(
            f"{path.parent} holds results of {key} {then[key]}, and this is {now[key]}; give another --out"
        )
    write_json(path, {**then, **now})
    return {**then, **now}


def main(argv: Sequence[str]) -> int:
    """Returns 0; 2 for the user's error, 130 when interrupted."""
    return exit_code(lambda: study(parse_options(RobustnessOptions, argv, "python benchmarks/robustness.py", __doc__)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
