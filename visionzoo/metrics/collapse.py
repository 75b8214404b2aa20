"""Whether pretraining on views has collapsed, and why, from a few numbers that are measured while it runs.

Each sign is what a collapse does to the features or to what the heads say; what brings them about is in the papers:
DINO (arXiv 2104.14294, section 5.3), SimSiam (2011.10566, section 4.1), MoCo v3 (2104.02057).
"""

from __future__ import annotations

from collections.abc import Mapping

#: Entropy over images, as a share of the largest, below which there is one prototype.
ONE_PROTOTYPE = 0.05
#: Entropies of an image, below which a teacher has no doubt: now, and before it has learned anything.
NO_DOUBT, BORN_SURE = 0.01, 0.1
#: Above this share a teacher says nothing; it counts where it had said something, below the second.
ALL_ALIKE, HAD_SAID = 0.995, 0.97
#: Fewer images than this are compared with, of many.
FEW_NEGATIVES, MANY = 3.0, 16
#: The share of the spread before training, below which images have one feature.
SAME_FEATURES = 0.03


def diagnose(now: Mapping[str, float], start: Mapping[str, float], images: int) -> str:
    """What has collapsed and the likely reason, in one line; empty where nothing has.

    Args:
        now: ``spread`` of the features; where the method has a teacher with prototypes ``teacher_entropy`` (of an
            image) and ``prototype_entropy`` (of all images together), as shares of the largest; where images are
            compared ``negatives``, how many others count.
        start: the same before the first step, and ``lowest_entropy`` of the teacher so far.
        images: how many they were measured on.
    """
    prototypes, doubt = now.get("prototype_entropy", 1.0), now.get("teacher_entropy", 0.5)
    if doubt < NO_DOUBT and start.get("teacher_entropy", 1.0) < BORN_SURE:
        return (
            f"the teacher has no doubt about any image (entropy {doubt:.4f} of 1, {start['teacher_entropy']:.4f} "
            "before it had learned anything): model.teacher_temperature is too low; the paper uses 0.04 to 0.07"
        )
    if prototypes < ONE_PROTOTYPE:
        return (
            f"the teacher gives all images the same prototype (entropy over images {prototypes:.4f} of 1): centring is "
            "off or too slow; lower model.centre_momentum, or the learning rate"
        )
    if doubt > ALL_ALIKE and start.get("lowest_entropy", 1.0) < HAD_SAID:
        return (
            f"the teacher finds every prototype equally likely (entropy {doubt:.4f} of 1): sharpening is lost; lower "
            "model.teacher_temperature, or the learning rate"
        )
    # of trained features few others may count for a good reason, of untrained ones for no other
    if max(now.get("negatives", images), start.get("negatives", images)) < FEW_NEGATIVES and images >= MANY:
        return (
            f"each image is told from {now['negatives']:.1f} others only, of {images - 1}: model.temperature is too "
            "low; the papers use 0.1 to 0.5"
        )
    if now["spread"] < SAME_FEATURES * start["spread"]:
        return (
            f"all images get nearly the same features (spread {now['spread']:.2g}, {start['spread']:.2g} before "
            "training): nothing holds them apart. Either a gradient reaches the targets (no stop-gradient, or a "
            "teacher that is the student: model.momentum), or the learning rate is too high"
        )
    return ""
