"""Networks that learn from views of images without labels."""

from visionzoo.models.ssl.create import create_ssl
from visionzoo.models.ssl.dino import Dino
from visionzoo.models.ssl.moco import MoCo
from visionzoo.models.ssl.simclr import SimCLR

__all__ = ["Dino", "MoCo", "SimCLR", "create_ssl"]
