"""Which network should I use? CNNs and ViTs under one declared budget, and by their own published recipes.

    python benchmarks/cnn_vs_vit.py --data.path imagenette --out results/imagenette --budget.steps 2000 \\
        --models resnet50,convnext_tiny,vit_small_patch16_224,swin_tiny_patch4_window7_224

Accuracy with its spread over seeds, data efficiency, robustness, calibration, speed, memory. ``docs/benchmarks.md``
says how to read it. The same command goes on where an interrupted one stopped. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 if a run failed, 2 for the user's error, 130 when interrupted."""
    if argv[:1] == ["--child"]:
        from comparison.child import main as child

        return child(*argv[1:])
    from comparison.options import check, parse
    from comparison.runner import compare
    from script import exit_code

    return exit_code(lambda: compare(check(parse(argv, __doc__))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
