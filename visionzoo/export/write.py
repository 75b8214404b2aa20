"""Export a model into a folder, and prove that the files give its answers before the folder is there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import visionzoo
from visionzoo.export.failure import need_export_extra
from visionzoo.export.feeds import Pictures, proof_images
from visionzoo.export.folder import FORMAT, VERSION, new_folder, write_spec
from visionzoo.export.lower import calibration_pictures, lower_precision
from visionzoo.export.parts import KINDS, GraphPart, Plan
from visionzoo.export.plans import licence_of
from visionzoo.export.proof import Proof, prove
from visionzoo.export.readme import folder_readme
from visionzoo.export.to_onnx import OPSET, OnnxRunner, export_onnx
from visionzoo.export.to_torch import export_torch
from visionzoo.inference.progress import track
from visionzoo.models.carried import carry

FORMATS = ("onnx", "pt2", "aoti")
PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),
    "pt2": ("fp32", "bf16", "fp16"),
    "aoti": ("fp32", "bf16", "fp16"),
}
#: Where to find what a format lacks.
_HINTS = {
    "onnx": "; ONNX Runtime has no bf16 on CPUs: --to pt2 has",
    "pt2": "; --to onnx has int8",
    "aoti": "; --to onnx has int8",
}
#: kind -> the script that runs it without us
SCRIPTS = {"classifier": "images.py", "zero-shot": "images.py", "features": "images.py", "pyramid": "images.py",
           "clip": "images.py", "sam": "prompts.py"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export."""

    folder: Path
    proofs: tuple[Proof, ...]  #: one for each part
    images: str  #: what was compared on, in words
    sizes: dict[str, int]  #: bytes of each graph
    notes: tuple[str, ...] = ()  #: what a person should know


def export_plan(
    plan: Plan, out: str | Path, *, to: str = "onnx", precision: str = "fp32", images: Pictures | None = None
) -> Exported:
    """Write the folder of a plan, and prove it.

    Args:
        plan: of :func:`visionzoo.export.plans.make_plan`.
        out: the folder, which must not exist.
        to: ``onnx``; ``pt2``, torch's own graph; or ``aoti``, machine code by AOTInductor, which wants a C++ compiler.
        precision: ``fp32``; ``bf16`` of the last two; ``fp16``, of which ONNX keeps nodes that it is too coarse for in
            fp32; or, of ONNX, ``int8``: calibrated on ``images`` and, where they are labelled, held to fp32's accuracy.
        images: a picture, a folder of them or another data set to compare on, or opened splits; None for built-in ones.

    Raises:
        NotTheSame: where a file does not give the model's answers; nothing is left at ``out``.
        FileExistsError: for a folder that exists.
        FileNotFoundError: if there are no images.
        ValueError: for an operator that cannot be exported, unreadable images, too few for int8, or a missing extra.
    """
    if to not in FORMATS:
        raise ValueError(f"to={to!r} must be one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS[to]:
        raise ValueError(f"--to {to} has the precisions {', '.join(PRECISIONS[to])}, not {precision!r}{_HINTS[to]}")
    if to == "onnx":
        need_export_extra()
    with new_folder(out) as folder:
        if precision == "int8":
            calibration_pictures(plan, images)  # a mistake is said before minutes of work
        plan = replace(plan, facts=carry(plan.facts, folder))
        pictures, said = proof_images(images)
        proofs, notes = [], [*plan.notes]
        for part in track(iter(plan.parts), len(plan.parts), "exporting", enough=0):
            path, example = folder / _file(part, to), next(part.feeds(pictures))
            if to != "onnx":
                run = export_torch(part, example, path, _metadata(plan, part), precision, compiled=to == "aoti")
                proof = prove(part, run, pictures)
            else:
                export_onnx(part, example, path, _metadata(plan, part))
                if precision == "fp32":
                    proof = prove(part, OnnxRunner(path), pictures)
                else:
                    proof, more = lower_precision(plan, part, path, precision, pictures, images)
                    notes += more
            proof.require(precision)
            proofs.append(proof)
        spec = {**_spec(plan, proofs, said, to), "precision": precision, "notes": notes}
        write_spec(folder, spec, folder_readme(spec), SCRIPTS[plan.kind] if to == "onnx" else "")
        sizes = {part.name: sum(p.stat().st_size for p in folder.glob(f"{_file(part, to)}*")) for part in plan.parts}
    return Exported(folder=Path(out), proofs=tuple(proofs), images=said, sizes=sizes, notes=tuple(notes))


def _file(part: GraphPart, to: str) -> str:
    return f"{part.name}.{'onnx' if to == 'onnx' else 'pt2'}"


def _metadata(plan: Plan, part: GraphPart) -> dict[str, str]:
    return {
        "description": f"{plan.name}: {KINDS[plan.kind]}",
        "kind": plan.kind,
        "backbone": plan.backbone,
        "preprocess": json.dumps(plan.preprocess.to_dict()),
        "outputs": json.dumps({port.name: port.meaning for port in part.outputs}),
        **licence_of(plan.backbone),
        **{k: v if isinstance(v, str) else json.dumps(v) for k, v in plan.facts.items() if k != "calibration"},
    }


def _spec(plan: Plan, proofs: list[Proof], images: str, to: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "kind": plan.kind,
        "name": plan.name,
        "backbone": plan.backbone,
        **licence_of(plan.backbone),
        "written_by": {"visionzoo": visionzoo.__version__, "torch": torch.__version__},
        "to": to,
        **({"opset": OPSET} if to == "onnx" else {}),
        "files": {part.name: _file(part, to) for part in plan.parts},
        "graphs": {
            part.name: {
                "inputs": [port.described() for port in part.inputs],
                "outputs": [port.described() for port in part.outputs],
            }
            for part in plan.parts
        },
        "preprocess": plan.preprocess.to_dict(),
        **plan.facts,
        "proof": {"images": images, "rows": [row for proof in proofs for row in proof.to_list()]},
    }
