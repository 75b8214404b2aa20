"""The README of an exported folder."""

from __future__ import annotations

from typing import Any

from visionzoo.export.parts import KINDS
from visionzoo.terminal import visible_name


def folder_readme(spec: dict[str, Any]) -> str:
    """Markdown of what ``preprocess.json`` says, for a person who has the folder alone."""
    p = spec["preprocess"]
    height, width = p["image_size"]
    lines = [
        f"# {visible_name(spec['name'])}",
        "",
        f"This model {KINDS[spec['kind']]}. Backbone: {spec['backbone']}. Precision: {spec['precision']}.",
        f"Licence of the published weights: {spec.get('licence', 'not known')}.",
        "",
        f"Pictures are brought to {height}x{width} pixels (height x width): resized by `{p['resize_mode']}` with "
        f"{p['interpolation']} interpolation, crop share {p['crop_pct']:g}. `preprocess.json` has every number, and "
        "`predict.py` does it. Normalisation is in the graph: give pixels as they are, 0..255.",
        "",
    ]
    for name, graph in spec["graphs"].items():
        lines += [f"## {spec['files'][name]}", "", "| | name | type | shape | meaning |", "|---|---|---|---|---|"]
        for way in ("inputs", "outputs"):
            for port in graph[way]:
                shape = ", ".join(map(str, port["shape"]))
                lines.append(f"| {way[:-1]} | `{port['name']}` | {port['dtype']} | ({shape}) | {port['meaning']} |")
        lines.append("")
    if "labels" in spec:
        shown = ", ".join(visible_name(label) for label in spec["labels"][:20])
        more = f" and {len(spec['labels']) - 20} more" if len(spec["labels"]) > 20 else ""
        lines += [f"Labels, in order: {shown}{more}. Temperature of the softmax: {spec['temperature']:g}.", ""]
    lines += [*spec["notes"], ""] if spec["notes"] else []
    lines += [*_how_to_run(spec), "", "`sha256sum -c SHA256SUMS` says whether all is as it was.", ""]
    lines += [
        "## Proof",
        "",
        f"Compared with PyTorch on {visible_name(spec['proof']['images'])}. A difference is the largest of an output, "
        "as a share of its largest value.",
        "",
        "| graph | output | size | batch | images | difference | least cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['part']} | {r['output']} | {r['size']} | {r['batch']} | {r['images']} | {r['difference']:.1e} | "
        f"{r['cosine']:.6f} |"
        for r in spec["proof"]["rows"]
    ]
    return "\n".join(lines) + "\n"


def _how_to_run(spec: dict[str, Any]) -> list[str]:
    if spec["to"] == "onnx":
        arguments = "photo.jpg 120,80" if spec["kind"] == "sam" else "photo.jpg"
        install, call = "pip install numpy pillow onnxruntime", f"python predict.py {arguments}"
        with_us = ["", 'With visionzoo: `visionzoo.load_exported("this folder")`.']
    else:
        file = next(iter(spec["files"].values()))
        install = "pip install torch"
        call = f'torch.export.load("{file}").module()(images)'
        if spec["to"] == "aoti":
            call = f'torch._inductor.aoti_load_package("{file}")(images)  # on a machine like the one that wrote it'
        with_us = []
    return ["## Run it", "", "```", install, call, "```", *with_us]
