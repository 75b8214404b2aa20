"""Weights in and out: safe reading, atomic writing, local and hub sources, one adapter per foreign format."""

from visionzoo.weights.exporting import export_weights
from visionzoo.weights.loading import LoadReport, install_load_hook, load_weights
from visionzoo.weights.reading import read_state_dict
from visionzoo.weights.sources import resolve_source
from visionzoo.weights.writing import SCHEMA_VERSION, write_safetensors

__all__ = [
    "SCHEMA_VERSION",
    "LoadReport",
    "export_weights",
    "install_load_hook",
    "load_weights",
    "read_state_dict",
    "resolve_source",
    "write_safetensors",
]
