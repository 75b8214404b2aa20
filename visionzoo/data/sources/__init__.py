"""Where images come from. :func:`visionzoo.data.sources.open.open_data` finds the reader of a path."""
