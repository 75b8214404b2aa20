"""The small commands. Each module has ``add_parser(subparsers)`` and ``run(args) -> exit status``.

Importing one is cheap: whatever needs torch is imported inside ``run``. Errors of the user leave ``run`` as
``ValueError`` or ``FileNotFoundError``; :mod:`visionzoo.cli.main` turns them into one line and exit status 2.
"""

from __future__ import annotations

#: command, of one word or two -> the module that has it
COMMANDS: dict[str, str] = {
    "models": "visionzoo.cli.commands.models",
    "fit": "visionzoo.cli.commands.fit",
    "predict": "visionzoo.cli.commands.predict",
    "calibrate": "visionzoo.cli.commands.calibrate",
    "zeroshot": "visionzoo.cli.commands.zeroshot",
    "search": "visionzoo.cli.commands.search",
    "embed": "visionzoo.cli.commands.embed",
    "data": "visionzoo.cli.commands.data",
    "attention": "visionzoo.cli.commands.attention",
    "masks": "visionzoo.cli.commands.masks",
    "reconstruct": "visionzoo.cli.commands.reconstruct",
    "probe": "visionzoo.cli.commands.probe",
    "export": "visionzoo.cli.commands.export",
    "soup": "visionzoo.cli.commands.soup",
    "push": "visionzoo.cli.commands.push",
    "report": "visionzoo.cli.commands.report",
    "demo": "visionzoo.cli.commands.demo",
    "bench": "visionzoo.cli.commands.bench",
    "bench compare": "visionzoo.cli.commands.bench_compare",
    "cache": "visionzoo.cli.commands.cache",
    "completion": "visionzoo.cli.commands.completion",
    "env": "visionzoo.cli.commands.env",
}
