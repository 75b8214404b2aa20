"""From labelled photographs to a classifier, without options: ``visionzoo fit`` and ``vz.few_shot``."""
