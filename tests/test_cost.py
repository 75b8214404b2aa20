"""No regression unnoticed: what each family costs, in operators, multiply-adds and kept memory.

Seconds are for ``benchmarks/``. A change that makes something dearer has to change this table, and say why; one that
makes it cheaper tightens it. ``python tests/cost.py`` prints the table anew.
"""

from __future__ import annotations

import pytest
from cost import Cost, cases

#: More than this is a regression; far less has to be written down. Versions of torch differ in a few operators.
TABLE = {
    "vit_tiny_patch16_224, inference": Cost(141, 416.056, 0.0),
    "vit_tiny_patch16_224, training": Cost(136, 1237.552, 10.75),
    "vit_nano_patch4_32, inference": Cost(53, 30.279, 0.0),
    "vit_nano_patch4_32, training": Cost(56, 90.443, 2.131),
    "deit3_small_patch16_224, inference": Cost(164, 1617.758, 0.0),
    "deit3_small_patch16_224, training": Cost(159, 4832.041, 23.876),
    "vit_small_patch14_dinov2, inference": Cost(165, 2867.153, 0.0),
    "vit_small_patch14_dinov2, training": Cost(160, 8572.557, 41.861),
    "vit_small_patch16_dinov3, inference": Cost(380, 1793.378, 0.0),
    "vit_small_patch16_dinov3, training": Cost(315, 5358.901, 30.779),
    "beitv2_base_patch16_224, inference": Cost(224, 6378.099, 0.0),
    "beitv2_base_patch16_224, training": Cost(303, 19091.829, 48.796),
    "swin_tiny_patch4_window7_224, inference": Cost(226, 4407.61, 0.0),
    "swin_tiny_patch4_window7_224, training": Cost(288, 13213.392, 89.729),
    "swinv2_tiny_window8_256, inference": Cost(519, 3450.652, 0.0),
    "swinv2_tiny_window8_256, training": Cost(551, 10339.753, 90.657),
    "samvit_base_patch16, inference": Cost(389, 15853.093, 0.0),
    "samvit_base_patch16, training": Cost(464, 47483.781, 149.958),
    "mae, training": Cost(96, 90.3, 2.378),
    "clip, training": Cost(145, 228.03, 4.853),
    "sam, click": Cost(172, 19.26, 0.0),
    "segment, training": Cost(273, 583.021, 11.723),
}
SLACK, STALE = Cost(1.05, 1.001, 1.01), 0.75


def test_every_case_is_in_the_table() -> None:
    assert set(TABLE) == set(cases())


@pytest.mark.long
@pytest.mark.parametrize("name", TABLE)
def test_costs_no_more_than_before(name: str) -> None:
    limit, now = TABLE[name], cases()[name]()
    for what, most, slack, found in zip(Cost._fields, limit, SLACK, now, strict=True):
        assert found <= slack * most, f"{what} of {name}: {found}, was {most}"
        assert found >= STALE * most, f"{what} of {name} fell to {found} from {most}: write it into the table"


def test_the_guard_sees_one_more_operator_and_one_more_kept_tensor() -> None:
    import torch
    from cost import inference, training

    layer = torch.nn.Linear(64, 64)
    x = torch.randn(32, 64)
    assert inference(lambda: layer(x)) == Cost(1, 0.131, 0.0)
    plain = training(layer, lambda: layer(x).sum())
    more = training(layer, lambda: layer(x).exp().sum())
    assert more.operators == plain.operators + 1
    assert more.kept_mib == pytest.approx(plain.kept_mib + 32 * 64 * 4 / 2**20, abs=1e-3)
