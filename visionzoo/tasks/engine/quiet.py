"""What Lightning says to everybody, and what does not hold here."""

from __future__ import annotations

import logging
import re
import warnings


def quiet_lightning() -> None:
    """Silence what Lightning says to everybody and what does not hold here; its other warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric"):  # they greet, advertise and narrate
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        re.escape("`isinstance(treespec, LeafSpec)` is deprecated"),
        ".*does not have many workers",
        ".*smaller than the logging interval",  # the task adapts the interval
        ".*your dataloader is not resumable",  # the datamodule resumes the order exactly
        r"Found \d+ module\(s\) in eval mode",  # what is frozen is meant to be
        ".*callbacks used to create the checkpoint need to be provided",  # an evaluation needs none of those of a fit
    ):
        warnings.filterwarnings("ignore", message=text)
