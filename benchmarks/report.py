"""Write ``benchmarks/RESULTS.md`` from the records in ``benchmarks/results``. Never edit it by hand.

python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from harness import RESULTS

from visionzoo.files import write_text

#: A title for each kind of record, and what its rows should reach: (words in the row's name, case, target).
SCRIPTS: dict[str, tuple[str, tuple[tuple[tuple[str, ...], str, float], ...]]] = {
    "export": ("Exported classifiers against PyTorch and timm's own ONNX", ()),
    "throughput": (
        "Backbones against timm, torchvision and transformers",
        (
            (("vit_small", "inference", "fp32"), "visionzoo", 1.0),
            (("vit_base", "inference", "fp32"), "visionzoo", 1.0),
            (("vit_small", "inference", "bf16"), "visionzoo", 1.15),
            (("vit_base", "inference", "bf16"), "visionzoo", 1.08),
            (("swin_tiny", "inference"), "visionzoo", 1.15),
            (("vit_small", "training"), "visionzoo", 1.1),
            (("swin_tiny", "training"), "visionzoo", 1.1),
        ),
    ),
    "mae": (
        "A training step of MAE against transformers",
        ((("fp32",), "visionzoo", 1.15), (("bf16",), "visionzoo", 1.3)),
    ),
    "ssl": (
        "Pretraining on views against lightly",
        ((("fp32",), "visionzoo", 1.15), (("bf16",), "visionzoo", 1.3), (("views",), "visionzoo", 1.5)),
    ),
    "clip": (
        "CLIP against open_clip and transformers",
        ((("classifier",), "visionzoo", 6.0), (("training",), "visionzoo", 1.5)),
    ),
    "sam": (
        "Segment Anything against Meta's code and transformers",
        (
            (("encoder",), "visionzoo", 2.0),
            (("encoder",), "visionzoo, bf16", 3.5),
            (("click",), "visionzoo", 1.5),
            (("everything",), "visionzoo", 2.0),
        ),
    ),
    "train": (
        "What a training step costs beside the step",  # at most 1.07 and 1.10 times the bare loop
        ((("plain Trainer",), "plain Trainer", round(1 / 1.07, 3)), (("train.py",), "train.py", round(1 / 1.10, 3))),
    ),
    "segment": ("Memory of a training step of segmentation", ()),
    "decode": ("Accuracy after training on fast pixels", ()),
    "doctor": ("What the data doctor finds of what was planted", ()),
    "loader": (
        "Reading images against torchvision and timm",
        (
            (("torchvision",), "visionzoo", 1.6),
            (("timm",), "visionzoo", 1.5),
            (("against",), "visionzoo, fast", 2.0),
        ),
    ),
}


def section(record: dict[str, Any], name: str) -> list[str]:
    """The Markdown of one record."""
    kind = name.partition("-")[0]
    title, targets = SCRIPTS.get(kind, (name, ()))
    machine = record["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    versions = ", ".join(f"{k} {v}" for k, v in sorted(machine["versions"].items()))
    git = machine["git"] or {}
    lines = [
        f"## {title}",
        "",
        f"`{machine['command']}` on {machine['date']}: {where}, load {machine['load']:.1f} at the start, commit "
        f"{str(git.get('commit', 'unknown'))[:10]}{' with changes' if git.get('dirty') else ''}.",
        f"{versions}.",
        "",
        "| row | case | seconds (quartiles) | times as fast (quartiles) | target | of peak | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, result in record["results"].items():
        clock = result.get("clock", "cpu" if machine["threads"] == 1 else "wall")
        for case, values in result.get("cases", {}).items():
            lines.append("| " + " | ".join(_cells(row, case, values, clock, targets)) + " |")
        for kind, share in result.get("accuracy", {}).items():
            lines.append(f"| {row} | {kind} | accuracy {share:.2%} | | | | |")
        for name, value in result.get("found", {}).items():
            text = (
                f"{value:.3f}" if not isinstance(value, dict) else ", ".join(f"{k}: {v:.3f}" for k, v in value.items())
            )
            lines.append(f"| {row} | {name} | {text} | | | | |")
        for form, gib in result.get("added_gib", {}).items():
            lines.append(f"| {row} | {form} | | | | | adds {gib:.3f} |")
        for peer, why in result.get("absent", {}).items():
            lines.append(f"| {row} | {peer} | left out: {why} | | | | |")
    return [*lines, ""]


def _cells(row: str, case: str, values: dict[str, Any], clock: str, targets: Any) -> list[str]:
    seconds, ratio = values["seconds"][clock], values["speedup"][clock]
    wanted = next((t for words, name, t in targets if name == case and all(w in row for w in words)), None)
    reached = "" if wanted is None else f"{wanted:g}: " + ("yes" if ratio["median"] >= wanted else "no")
    share, peak = values.get("share_of_peak"), values.get("peak_gib")
    return [
        row,
        case,
        f"{seconds['median']:.3f} ({seconds['low']:.3f}-{seconds['high']:.3f})",
        f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        reached,
        "" if share is None else f"{share:.0%}",
        "" if peak is None else f"{peak:.2f}",
    ]


def comparisons(folder: Path) -> list[str]:
    """Links to what ``cnn_vs_vit.py`` wrote, each in a folder of its own."""
    pages = sorted(folder.glob("cnn_vs_vit/*/results.md"))
    if not pages:
        return []
    lines = ["## CNN against ViT", ""]
    for page in pages:
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}](results/{page.relative_to(folder).as_posix()}), and `index.html` beside it")
    return [*lines, ""]


def report(folder: Path) -> str:
    """The whole page.

    Raises:
        SystemExit: without any record.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SystemExit(f"no records in {folder}; run a benchmark first")
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/report.py` from the records in `benchmarks/results`; not by hand.",
        "",
        "Every row is measured in one process, the cases in turn (A B A B), on the same weights, after their outputs",
        "were compared. Seconds are medians; a ratio is the median over rounds of the reference's time by ours, each",
        "with its neighbour. With one thread CPU time is used, which other programs hardly change; else wall time.",
        "",
    ]
    lines += comparisons(folder)
    for file in files:
        lines += section(json.loads(file.read_text()), file.stem)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "RESULTS.md")
    args = parser.parse_args()
    write_text(args.out, report(args.results))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
