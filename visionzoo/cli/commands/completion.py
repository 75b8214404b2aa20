"""``visionzoo completion SHELL``"""

from __future__ import annotations

import argparse

from visionzoo.cli.commands.arguments import Subparsers
from visionzoo.terminal import say

SHELLS = ("bash", "zsh", "tcsh", "fish")


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="have the shell complete commands and options",
        description="Print what makes a shell complete the words of visionzoo. For bash: visionzoo completion bash > "
        "~/.local/share/bash-completion/completions/visionzoo, then open another shell.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(args: argparse.Namespace) -> int:
    import argcomplete

    say(argcomplete.shellcode(["visionzoo"], shell=args.shell))
    return 0
