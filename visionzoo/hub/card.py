"""The model card: what a run says of itself, as the ``README.md`` of a repository.

Names, labels and paths are data: nothing of them acts as Markdown, and of a path only the last part is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from visionzoo.models.bundle import ModelConfig
from visionzoo.report.run_page import SCORES
from visionzoo.runs.answers import read_answers
from visionzoo.runs.folder import RunFolder
from visionzoo.runs.lineage import UNKNOWN, Ancestor
from visionzoo.runs.record import minutes_in_words, read_record
from visionzoo.terminal import visible_name
from visionzoo.text import parse_json

PIPELINES = {
    "classify": "image-classification",
    "clip": "zero-shot-image-classification",
    "segment": "mask-generation",
    "mae": "image-feature-extraction",
    "simmim": "image-feature-extraction",
    "ssl": "image-feature-extraction",
}
#: Classes that a card lists by name.
LISTED = 50
#: Of a normal distribution, for 95 %.
_Z = 1.959964


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is written from, beside the run's own files."""

    repository: str  #: org/name
    licence: str
    lineage: Sequence[Ancestor] | None  #: None where nothing is recorded
    layout: str
    picture: str | None  #: file name of the picture that is shown


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` images (Wilson, 1927), both ends in [0, 1]."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def escaped(text: object) -> str:
    """A name as Markdown and HTML show it, on one line."""
    shown = visible_name(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", shown)


def model_card(run: RunFolder, config: ModelConfig, facts: CardFacts) -> str:
    """The text of ``README.md``: facts for the hub in its first lines, then sections for people."""
    results = _read(run.results)
    sessions = read_record(run) if run.record.is_file() else []
    name = facts.repository.partition("/")[2]
    backbone = str(config.architecture.get("backbone") or config.architecture.get("name") or "")
    parts = [
        f"# {escaped(name)}",
        f"{_WHAT.get(config.task, 'A model')} on the backbone {escaped(backbone)}, trained with visionzoo.",
        *([f"![{config.task} on held-out images]({facts.picture})"] if facts.picture else []),
        "## Use\n\n" + _usage(config, facts),
        "## Results\n\n" + _results(run, config, results),
        "## Training\n\n" + _training(sessions, _read(run.path / "fit.json")),
        "## What it was made of\n\n" + _lineage(facts),
        "## Limits\n\n" + _limits(config),
    ]
    return f"---\n{_front(run, config, facts, results)}\n---\n\n" + "\n\n".join(parts) + "\n"


_WHAT = {
    "classify": "An image classifier",
    "clip": "Images and texts in one space",
    "segment": "Masks by clicks and boxes",
    "mae": "A masked autoencoder, whose encoder is to be fine-tuned,",
    "simmim": "A network pretrained to fill in images, to be fine-tuned,",
    "ssl": "A network pretrained on several views of each image, to be fine-tuned,",
}


def _front(run: RunFolder, config: ModelConfig, facts: CardFacts, results: dict[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    library = {"timm": "timm", "open_clip": "open_clip", "transformers": "transformers"}.get(facts.layout, "visionzoo")
    scores = _numbers(results)
    task = PIPELINES.get(config.task)
    evaluated = [
        EvalResult(
            task_type=task, dataset_type="held-out", dataset_name="held-out images",
            metric_type=name, metric_value=round(value, 5),
        )
        for name, value in scores.items()
        if task is not None and name != "loss"
    ]  # fmt: skip
    bases = [
        a.name.removeprefix("hf-hub:").partition("@")[0] for a in facts.lineage or () if a.name.startswith("hf-hub:")
    ]
    name = visible_name(run.path.resolve().name)
    data = ModelCardData(
        license=facts.licence,
        library_name=library,
        pipeline_tag=task,
        tags=["visionzoo", config.task],
        base_model=bases or None,
        model_name=name if evaluated else None,
        eval_results=evaluated or None,
    )
    return str(data.to_yaml())


def _usage(config: ModelConfig, facts: CardFacts) -> str:
    source = f'"hf-hub:{facts.repository}"'
    if facts.layout == "timm":
        lines = ["import timm", f"model = timm.create_model({source}, pretrained=True).eval()"]
    elif facts.layout == "open_clip":
        lines = ["import open_clip", f"model, _, preprocess = open_clip.create_model_and_transforms({source})"]
    elif facts.layout == "transformers":
        call = f'pipeline("image-classification", model="{facts.repository}")'
        lines = ["from transformers import pipeline", f'print({call}("photo.jpg"))']
    elif config.task in _OURS:
        lines = ["import visionzoo as vz", *(line.format(source=source) for line in _OURS[config.task])]
    else:
        return "```bash\n" + _TUNE.format(source=source.strip('"')) + "\n```"
    return "```python\n" + "\n".join(lines) + "\n```"


_OURS = {
    "classify": ("clf = vz.ImageClassifier.load({source})", 'print(clf.predict(["photo.jpg"])[0][:3])'),
    "clip": (
        'zs = vz.ZeroShotClassifier.load({source}, labels=["a cat", "a dog"])',
        'print(zs.predict(["photo.jpg"])[0])',
    ),
    "segment": (
        "from PIL import Image",
        "sam = vz.SamPredictor.load({source})",
        'sam.set_image(Image.open("photo.jpg"))',
        "masks, scores, _ = sam.predict(point_coords=[[120, 80]], point_labels=[1])",
    ),
}
_TUNE = "visionzoo train classify fit --data.path photos --model.weights {source}"


def _results(run: RunFolder, config: ModelConfig, results: dict[str, Any]) -> str:
    scores = _numbers(results)
    if not scores:
        return "The run has no scores of held-out images."
    about = read_answers(run.answers).about if run.answers.is_file() else None
    rows = ["| score | value | 95 % interval |", "|---|---|---|"]
    for name, value in sorted(scores.items(), key=lambda pair: pair[0] == "loss"):
        known, share = SCORES.get(name, (name.replace("_", " "), False))
        interval = ""
        if about is not None and name in ("accuracy", "top5"):
            low, high = wilson(min(max(value, 0.0), 1.0), about.images)
            interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        rows.append(f"| {known} | {f'{100 * value:.2f} %' if share else f'{value:.4g}'} | {interval} |")
    stage = {"val": "validation", "test": "test"}.get(str(results.get("stage")), "held-out")
    text = "\n".join(rows)
    if about is not None:
        after = (
            "" if len(about.calibration_error) < 2 else f", {100 * about.calibration_error[1]:.2f} % with a temperature"
        )
        text += (
            f"\n\nOn {about.images:,} {stage} images. Expected calibration error "
            f"{100 * about.calibration_error[0]:.2f} %{after}."
        )
    else:
        text += f"\n\nOn the {stage} images of its data; intervals are given for shares of counted images only."
    if config.calibration is not None:
        text += " Probabilities come with the temperature that is in `config.json`."
    if which := results.get("which"):
        text += f" Weights: {escaped(which)}."
    return text


def _training(sessions: Sequence[dict[str, Any]], fitted: dict[str, Any]) -> str:
    if not sessions:
        return "The run has no record of its training."
    last = sessions[-1]
    machine, data = _dict(last.get("machine")), _dict(last.get("data"))
    gpus = machine.get("gpus") or ["no GPU"]
    versions = _dict(last.get("versions"))
    rows = {
        "data": f"{PurePath(str(data.get('path', ''))).name or 'not recorded'}"
        + (f", fingerprint {data['fingerprint']}" if data.get("fingerprint") else ""),
        "minutes": minutes_in_words([*sessions, fitted]) or "not recorded",
        "machine": f"{machine.get('cpus', '?')} CPUs, {', '.join(map(str, gpus))}",
        "energy": "not measured",
        "seed": last.get("seed"),
        "versions": ", ".join(f"{k} {versions[k]}" for k in ("visionzoo", "torch", "timm") if k in versions),
    }
    return "\n".join(f"- {key}: {escaped(value)}" for key, value in rows.items() if value not in (None, ""))


def _lineage(facts: CardFacts) -> str:
    if facts.lineage is None:
        return f"The run does not say what it began with. Published under {escaped(facts.licence)}."
    if not facts.lineage:
        return f"Trained from random weights. Published under {escaped(facts.licence)}."
    rows = [
        f"- {escaped(a.name)}: {'licence not known' if a.licence == UNKNOWN else escaped(a.licence)}"
        for a in facts.lineage
    ]
    return "It began with these weights:\n\n" + "\n".join(rows) + f"\n\nPublished under {escaped(facts.licence)}."


def _limits(config: ModelConfig) -> str:
    height, width = config.preprocess.image_size
    lines = [
        f"It sees images at {height}x{width} pixels, and knows what its training data shows: other cameras, places and "
        "subjects may give worse answers than the scores above."
    ]
    if config.task == "classify":
        lines.append(f"It always answers with one of its {len(config.labels) or '?'} classes, whatever an image shows.")
        if config.labels:
            named = ", ".join(map(escaped, config.labels[:LISTED]))
            more = f" and {len(config.labels) - LISTED:,} more" if len(config.labels) > LISTED else ""
            lines.append(f"Classes: {named}{more}.")
    return "\n\n".join(lines)


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    scores = _dict(results.get("scores"))
    return {str(k): float(v) for k, v in scores.items() if isinstance(v, int | float) and math.isfinite(v)}


def _read(path: Path) -> dict[str, Any]:
    return _dict(parse_json(path.read_bytes(), str(path))) if path.is_file() else {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
