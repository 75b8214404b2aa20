"""Turn a stem trained on some number of channels into one for another number, by an explicit policy."""

from __future__ import annotations

import math

from torch import Tensor

POLICIES = {
    "repeat": "tile the stored channels and rescale, as timm does; one channel gets their sum",
    "mean": "every channel gets the mean of the stored ones, rescaled so that a grey image gives what it gave",
    "random": "keep the model's fresh stem",
}


def adapt_channels(weight: Tensor, channels: int, policy: str) -> Tensor:
    """(O, I, kh, kw) -> (O, ``channels``, kh, kw), for the policies ``repeat`` and ``mean``.

    Both keep the response to an image whose channels are all equal (``repeat`` exactly so where ``channels`` is 1 or a
    multiple of I).
    """
    stored = weight.shape[1]
    full = weight.float()  # sums in half precision would be rough
    if policy == "repeat" and channels > 1:
        full = full.repeat(1, math.ceil(channels / stored), 1, 1)[:, :channels] * (stored / channels)
    else:
        full = (full.sum(dim=1, keepdim=True) / channels).expand(-1, channels, -1, -1)
    return full.to(weight.dtype)


def policy_error(model: str, key: str, stored: int, wanted: int) -> ValueError:
    """The question that nobody but the user can answer."""
    choices = "; ".join(f"{name!r}: {meaning}" for name, meaning in POLICIES.items())
    return ValueError(
        f"{key} was trained on {stored} channels and {model} takes {wanted}; choose in_chans_policy={choices}"
    )
