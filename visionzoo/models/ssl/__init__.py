"""Networks that learn from views of images without labels."""

from visionzoo.models.ssl.create import create_ssl, start_from
from visionzoo.models.ssl.dino import Dino
from visionzoo.models.ssl.moco import MoCo
from visionzoo.models.ssl.simclr import SimCLR
from visionzoo.models.ssl.views import ViewModel

__all__ = ["Dino", "MoCo", "SimCLR", "ViewModel", "create_ssl", "start_from"]
