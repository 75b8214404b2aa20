"""The page of a run: one HTML file without a network, and the components that other pages are made of too."""

from visionzoo.report.run_page import write_report
from visionzoo.report.shell import write_page

__all__ = ["write_page", "write_report"]
