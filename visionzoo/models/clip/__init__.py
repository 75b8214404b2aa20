"""CLIP and SigLIP: an image tower and a text tower that embed into one space."""

from visionzoo.models.clip.create import create_clip
from visionzoo.models.clip.model import Clip

__all__ = ["Clip", "create_clip"]
