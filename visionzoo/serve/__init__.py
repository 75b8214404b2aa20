"""The models in a browser, and for other programs: ``visionzoo demo``."""
