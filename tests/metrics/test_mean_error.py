"""Mean and standard error against numpy's."""

from __future__ import annotations

import numpy as np
import torch

from visionzoo.metrics.mean_error import MeanAndError


def test_it_is_the_mean_and_its_standard_error_whatever_the_batches() -> None:
    values = torch.randn(37, generator=torch.Generator().manual_seed(0)) * 3 + 100
    metric = MeanAndError()
    for part in values.split(5):
        metric.update(part)
    exact = values.double().numpy()
    wanted = [exact.mean(), exact.std(ddof=1) / np.sqrt(len(exact))]
    np.testing.assert_allclose(metric.compute().numpy(), wanted, rtol=1e-6)


def test_of_one_value_the_error_is_not_known() -> None:
    metric = MeanAndError()
    metric.update(torch.tensor([0.5]))
    assert metric.compute().tolist() == [0.5, float("inf")]
    metric.reset()
    metric.update(torch.empty(0))
    assert metric.compute().tolist() == [float("inf")] * 2
