"""Segment Anything (arXiv 2304.02643): an image encoder, a prompt encoder and a mask decoder (figure 4).

Meta's names everywhere but inside the image encoder, whose parameters are named as timm names them.
"""

from visionzoo.models.sam.build import SAM_BACKBONES, create_sam
from visionzoo.models.sam.model import Sam, SamPreprocess
from visionzoo.models.sam.prompts import Prompts

__all__ = ["SAM_BACKBONES", "Prompts", "Sam", "SamPreprocess", "create_sam"]
