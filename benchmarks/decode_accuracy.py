"""What ``--data.decode fast`` does to accuracy: the same trainings with exact and with fast pixels, seed by seed.

    python benchmarks/decode_accuracy.py --data.path imagenette --seeds 0 1 2

Each is ``train.py classify fit`` with one configuration. Only training images differ: evaluation is always exact. The
accuracy is that after the last epoch, on the held-out images. Compare the difference between the columns with the
spread over seeds.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from harness import Record, machine, table

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("exact", "fast")


def accuracy(args: argparse.Namespace, kind: str, seed: int, run_dir: Path) -> float:
    """Share of held-out images that one training gets right.

    Raises:
        RuntimeError: if the training fails; with the end of what it said.
    """
    options = {
        "--config": args.config,
        "--data.path": args.path,
        "--data.decode": kind,
        "--seed_everything": seed,
        "--trainer.max_epochs": args.epochs,
        "--run_dir": run_dir,
    }
    command = [str(x) for pair in options.items() for x in pair]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "classify", "fit", *command], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"training with {kind} pixels failed: {done.stderr.strip()[-1000:]}")
    with (run_dir / "metrics.csv").open(newline="") as file:
        return float([row["val/accuracy"] for row in csv.DictReader(file) if row["val/accuracy"]][-1])


def measure(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The accuracies of one seed."""
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = accuracy(args, kind, seed, Path(folder) / "run")
    print(table(["seed", *KINDS], [[str(seed), *(f"{x:.2%}" for x in found.values())]]))
    return {"accuracy": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", required=True, help="as of train.py classify; JPEG files")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "classify" / "imagenette.yaml")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default=None, help="JSON file; by default benchmarks/results/decode-cpu.json")
    args = parser.parse_args()
    record = Record("decode-cpu", {"machine": machine(), "epochs": args.epochs}, args.out)
    for seed in args.seeds:
        record.row(f"seed {seed}", partial(measure, args, seed))
    record.finish()


if __name__ == "__main__":
    main()
