"""No regression unnoticed: what each family costs, in operators, multiply-adds and kept memory.

Seconds are for ``benchmarks/``. A change that makes something dearer has to change this table, and say why; one that
makes it cheaper tightens it. ``python tests/cost.py`` prints the table anew.
"""

from __future__ import annotations

import pytest
from cost import Cost, cases

#: More than this is a regression (with 1 % of slack for other versions of torch); far less has to be written down.
TABLE = {
    "vit_tiny_patch16_224, inference": Cost(130, 285.115, 0.0),
    "vit_tiny_patch16_224, training": Cost(400, 1243.86, 10.75),
    "vit_nano_patch4_32, inference": Cost(49, 21.759, 0.0),
    "vit_nano_patch4_32, training": Cost(160, 92.606, 2.131),
    "deit3_small_patch16_224, inference": Cost(152, 1093.994, 0.0),
    "deit3_small_patch16_224, training": Cost(492, 4844.658, 23.876),
    "vit_small_patch14_dinov2, inference": Cost(153, 1947.027, 0.0),
    "vit_small_patch14_dinov2, training": Cost(496, 8611.495, 41.861),
    "vit_small_patch16_dinov3, inference": Cost(389, 1212.991, 0.0),
    "vit_small_patch16_dinov3, training": Cost(828, 5374.393, 30.779),
    "beitv2_base_patch16_224, inference": Cost(226, 4283.044, 0.0),
    "beitv2_base_patch16_224, training": Cost(780, 19091.829, 48.796),
    "swin_tiny_patch4_window7_224, inference": Cost(340, 3501.64, 0.0),
    "swin_tiny_patch4_window7_224, training": Cost(746, 13213.392, 89.729),
    "swinv2_tiny_window8_256, inference": Cost(605, 2544.682, 0.0),
    "swinv2_tiny_window8_256, training": Cost(1300, 10339.753, 90.657),
    "samvit_base_patch16, inference": Cost(393, 12229.214, 0.0),
    "samvit_base_patch16, training": Cost(1022, 47483.781, 149.958),
    "mae, training": Cost(223, 91.677, 2.378),
    "clip, training": Cost(348, 226.769, 4.853),
    "sam, click": Cost(197, 18.474, 0.0),
    "segment, training": Cost(664, 617.134, 11.723),
}
SLACK, STALE = 1.01, 0.75


def test_every_case_is_in_the_table() -> None:
    assert set(TABLE) == set(cases())


@pytest.mark.parametrize("name", TABLE)
def test_costs_no_more_than_before(name: str) -> None:
    limit, now = TABLE[name], cases()[name]()
    for what, most, found in zip(Cost._fields, limit, now, strict=True):
        assert found <= SLACK * most, f"{what} of {name}: {found}, was {most}"
        assert found >= STALE * most, f"{what} of {name} fell to {found} from {most}: write it into the table"


def test_the_guard_sees_one_more_operator_and_one_more_kept_tensor() -> None:
    import torch
    from cost import inference, training

    layer = torch.nn.Linear(64, 64)
    x = torch.randn(32, 64)
    assert inference(lambda: layer(x)) == Cost(1, 0.131, 0.0)
    plain = training(layer, lambda: layer(x).sum())
    more = training(layer, lambda: layer(x).exp().sum())
    assert more.operators >= plain.operators + 2
    assert more.kept_mib == pytest.approx(plain.kept_mib + 32 * 64 * 4 / 2**20, abs=1e-3)
