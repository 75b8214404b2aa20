"""Pictures and tables of results: arrays in, a file out. matplotlib is imported when something is drawn."""

from visionzoo.viz.confusion import confusion_matrix
from visionzoo.viz.curves import learning_curves
from visionzoo.viz.heatmap import heat_overlay
from visionzoo.viz.sheets import Line, MistakeItem, contact_sheet, mistakes_sheet
from visionzoo.viz.tables import per_class_csv

__all__ = [
    "Line",
    "MistakeItem",
    "confusion_matrix",
    "contact_sheet",
    "heat_overlay",
    "learning_curves",
    "mistakes_sheet",
    "per_class_csv",
]
