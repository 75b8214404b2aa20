import pytest
import torch

from visionzoo.losses.masked import hidden_pixel_loss, masked_pixel_loss, patchify, simmim_loss, unpatchify


def _case(batch=2, channels=3, size=(8, 12), patch=4, masked=4):
    g = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, *size, generator=g)
    n = (size[0] // patch) * (size[1] // patch)
    prediction = torch.randn(batch, n, patch * patch * channels, generator=g)
    order = torch.rand(batch, n, generator=g).argsort(1)
    mask = torch.zeros(batch, n).scatter_(1, order[:, :masked], 1.0)
    return images, prediction, mask, order[:, :masked]


def _slow_patch(image, row, col, p):
    return [image[c, row * p + y, col * p + x].item() for y in range(p) for x in range(p) for c in range(len(image))]


def test_patchify_is_written_out_rows_of_pixels_with_channels_last():
    images, *_ = _case()
    patches = patchify(images, 4)
    for b in range(2):
        for row in range(2):
            for col in range(3):
                assert patches[b, row * 3 + col].tolist() == _slow_patch(images[b], row, col, 4)


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, (8, 8), 2), (3, (16, 8), 8), (5, (14, 28), 14)])
def test_unpatchify_undoes_patchify(channels, size, patch):
    images = torch.randn(2, channels, *size)
    assert torch.equal(unpatchify(patchify(images, patch), patch, size), images)


def _slow_loss(images, prediction, mask, norm_pix, p=4):
    total = count = 0.0
    cols = images.shape[3] // p
    for b in range(len(images)):
        for n in range(mask.shape[1]):
            if mask[b, n] == 0:
                continue
            target = _slow_patch(images[b].double(), n // cols, n % cols, p)
            if norm_pix:
                mean = sum(target) / len(target)
                var = sum((t - mean) ** 2 for t in target) / (len(target) - 1)
                target = [(t - mean) / (var + 1e-6) ** 0.5 for t in target]
            errors = [(y.item() - t) ** 2 for y, t in zip(prediction[b, n], target, strict=True)]
            total += sum(errors) / len(errors)
            count += 1
    return total / count


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_mae_loss_is_the_written_out_loop(norm_pix, channels):
    images, prediction, mask, hidden = _case(channels=channels)
    expected = pytest.approx(_slow_loss(images, prediction, mask, norm_pix), rel=1e-6)
    assert masked_pixel_loss(prediction, images, mask, norm_pix).item() == expected
    of_hidden = prediction.gather(1, hidden.unsqueeze(-1).expand(-1, -1, prediction.shape[-1]))
    assert hidden_pixel_loss(of_hidden, images, hidden, norm_pix).item() == expected


def test_visible_patches_get_no_gradient():
    images, prediction, mask, _ = _case()
    prediction.requires_grad_()
    masked_pixel_loss(prediction, images, mask, True).backward()
    assert (prediction.grad.abs().sum(-1) > 0).equal(mask > 0)


@pytest.mark.parametrize("value", [0.0, 2.117904, -1e4])
def test_constant_images_give_a_finite_loss_and_gradient(value):
    images, prediction, mask, hidden = _case()
    prediction.requires_grad_()
    flat = torch.full_like(images, value)
    loss = masked_pixel_loss(prediction, flat, mask, True)
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()
    assert hidden_pixel_loss(prediction[:, :4], flat, hidden, True).isfinite()


def test_losses_are_float32_for_bfloat16_predictions():
    images, prediction, mask, hidden = _case()
    low = prediction.bfloat16()
    full = masked_pixel_loss(low.float(), images, mask, True)
    for loss in (
        masked_pixel_loss(low, images, mask, True),
        hidden_pixel_loss(low.gather(1, hidden.unsqueeze(-1).expand(-1, -1, low.shape[-1])), images, hidden, True),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full.item(), rel=1e-6)
    assert simmim_loss(images.bfloat16(), images, torch.ones(2, 2, 3)).dtype == torch.float32


def test_nothing_masked_is_a_loss_of_zero():
    images, prediction, mask, _ = _case()
    prediction.requires_grad_()
    loss = masked_pixel_loss(prediction, images, torch.zeros_like(mask), True)
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()
    assert simmim_loss(images + 1, images, torch.zeros(2, 2, 3)).item() == 0


def test_simmim_loss_is_the_written_out_loop():
    images, *_ = _case()
    g = torch.Generator().manual_seed(1)
    prediction = torch.randn(images.shape, generator=g)
    mask = (torch.rand(2, 2, 3, generator=g) < 0.5).float()
    total = pixels = 0.0
    for b in range(2):
        for y in range(8):
            for x in range(12):
                if mask[b, y // 4, x // 4]:
                    pixels += 1
                    total += sum(abs(prediction[b, c, y, x].item() - images[b, c, y, x].item()) for c in range(3))
    assert simmim_loss(prediction, images, mask).item() == pytest.approx(total / (pixels + 1e-5) / 3, rel=1e-6)


def test_errors_name_the_size_and_a_fitting_one():
    with pytest.raises(ValueError, match=r"8x13 pixels does not divide into patches of 4; use for example 8x12"):
        patchify(torch.zeros(1, 3, 8, 13), 4)
    with pytest.raises(ValueError, match=r"5 patches of 48 values .* takes 6 patches"):
        unpatchify(torch.zeros(1, 5, 48), 4, (8, 12))
    with pytest.raises(ValueError, match="multiple of 16 values"):
        unpatchify(torch.zeros(1, 6, 47), 4, (8, 12))
    with pytest.raises(ValueError, match="do not divide into a mask of 3x3 cells"):
        simmim_loss(torch.zeros(1, 3, 8, 12), torch.zeros(1, 3, 8, 12), torch.ones(1, 3, 3))
    with pytest.raises(ValueError, match="one value has no variance"):
        masked_pixel_loss(torch.zeros(1, 4, 1), torch.zeros(1, 1, 2, 2), torch.ones(1, 4), True)
