"""Where labelled images come from. :func:`visionzoo.data.sources.open.open_splits` recognises what a path is."""
