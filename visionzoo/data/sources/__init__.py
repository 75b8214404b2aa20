"""Where labelled images come from. :func:`visionzoo.data.sources.open.open_data` recognises what a path is."""
