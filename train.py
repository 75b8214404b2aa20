"""``python train.py TASK fit ...`` is the same as ``visionzoo train TASK fit ...``."""

import sys

from visionzoo.cli.main import train

if __name__ == "__main__":
    sys.exit(train())
