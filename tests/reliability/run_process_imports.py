"""What the forking process imports once for all runs."""

import albumentations  # noqa: F401
import matplotlib.pyplot
import run_process_faults  # noqa: F401
import timm  # noqa: F401
import torch
from pytorch_lightning.loggers import TensorBoardLogger  # noqa: F401

from visionzoo.cli import train
from visionzoo.data import captions, classification, segmentation, unlabelled  # noqa: F401
from visionzoo.data.sources.digits import DigitsSource  # noqa: F401
from visionzoo.tasks import classify, contrast, masked, segment  # noqa: F401

matplotlib.use("Agg")
torch.set_num_threads(1)  # a process with threads must not fork
assert train.TASKS
