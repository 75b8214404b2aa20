"""Which network should I use? CNNs and ViTs under one declared budget, and by their own published recipes.

    python benchmarks/cnn_vs_vit.py --data.path imagenette --out results/imagenette --budget.steps 2000 \\
        --models resnet50,convnext_tiny,vit_small_patch16_224,swin_tiny_patch4_window7_224

Accuracy with its spread over seeds, data efficiency, robustness, calibration, speed, memory. ``docs/benchmarks.md``
says how to read it. The same command goes on where an interrupted one stopped. ``--help`` lists the options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 if a run failed, 2 for the user's error, 130 when interrupted."""
    if argv[:1] == ["--child"]:
        from comparison.child import main as child

        return child(*argv[1:])
    from comparison.options import check, parse
    from comparison.runner import Interrupted, compare

    try:
        return compare(check(parse(argv)))
    except (Interrupted, KeyboardInterrupt):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("VISIONZOO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
