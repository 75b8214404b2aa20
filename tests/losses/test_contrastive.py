"""Each loss against its slow form; the same gradients in one process, in two, and cached."""

import math

import pytest
import torch
import torch.distributed as dist
from open_clip.loss import SigLipLoss
from torch import nn
from torch.nn import functional as F

from visionzoo.losses.contrastive import info_nce, sigmoid_loss
from visionzoo.losses.gather import cached_losses, gather_features


def features(n, dim=6, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    pair = [F.normalize(torch.randn(n, dim, generator=g, dtype=dtype), dim=1).requires_grad_() for _ in range(2)]
    return (
        *pair,
        torch.tensor(1.3, dtype=dtype, requires_grad=True),
        torch.tensor(-0.7, dtype=dtype, requires_grad=True),
    )


def slow_info_nce(image, text, logit_scale, _=None):
    s, n, total = logit_scale.exp().clamp(max=100.0), len(image), 0
    for i in range(n):
        own = s * (image[i] @ text[i])
        total = total + torch.stack([s * (image[i] @ text[j]) for j in range(n)]).logsumexp(0) - own
        total = total + torch.stack([s * (image[j] @ text[i]) for j in range(n)]).logsumexp(0) - own
    return total / (2 * n)


def slow_sigmoid(image, text, logit_scale, bias):
    s, n, total = logit_scale.exp(), len(image), 0
    for i in range(n):
        for j in range(n):
            z = 1 if i == j else -1
            total = total - torch.log(torch.sigmoid(z * (s * (image[i] @ text[j]) + bias)))
    return total / n


def slow_grouped_info_nce(image, text, logit_scale, groups):
    s, n, total = logit_scale.exp().clamp(max=100.0), len(image), 0
    for i in range(n):
        same = [j for j in range(n) if groups[j] == groups[i]]
        total = total + torch.stack([s * (image[i] @ text[j]) for j in range(n)]).logsumexp(0)
        total = total - torch.stack([s * (image[i] @ text[j]) for j in same]).mean()
        total = total + torch.stack([s * (image[j] @ text[i]) for j in range(n)]).logsumexp(0)
        total = total - torch.stack([s * (image[j] @ text[i]) for j in same]).mean()
    return total / (2 * n)


def slow_grouped_sigmoid(image, text, logit_scale, bias, groups):
    s, n, total = logit_scale.exp(), len(image), 0
    for i in range(n):
        for j in range(n):
            z = 1 if groups[i] == groups[j] else -1
            total = total - torch.log(torch.sigmoid(z * (s * (image[i] @ text[j]) + bias)))
    return total / n


LOSSES = {
    "info_nce": (lambda i, t, s, b, **k: info_nce(i, t, s, **k), slow_info_nce),
    "sigmoid": (sigmoid_loss, slow_sigmoid),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("chunk_rows", [None, 1, 3])
@pytest.mark.parametrize("n", [1, 7])
def test_the_loss_and_its_gradients_are_those_of_the_loop(kind, chunk_rows, n):
    fast, slow = LOSSES[kind]
    ours, theirs = features(n), features(n)
    a, b = fast(*ours, chunk_rows=chunk_rows), slow(*theirs)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    (3 * a).backward()
    (3 * b).backward()
    for x, y in zip(ours[: 3 if kind == "info_nce" else 4], theirs, strict=False):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-11)


GROUPS = torch.tensor([3, 5, 3, -9, 3, 5, 8])


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_pairs_of_one_group_are_no_wrong_answers_to_each_other(kind, chunk_rows):
    ours, theirs = features(7), features(7)
    fast, n = LOSSES[kind][0], 3 if kind == "info_nce" else 4
    slow = {"info_nce": slow_grouped_info_nce, "sigmoid": slow_grouped_sigmoid}[kind]
    a, b = fast(*ours, groups=GROUPS, chunk_rows=chunk_rows), slow(*theirs[:n], GROUPS)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    a.backward()
    b.backward()
    for x, y in zip(ours[:n], theirs, strict=False):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fast(*ours, groups=torch.arange(7)), fast(*ours), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"groups \(3,\) must be \(7,\)"):
        fast(*ours, groups=GROUPS[:3])


def test_the_least_loss_of_equal_captions_is_the_choice_among_them():
    text = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    text[1] = text[0]  # two pictures of one class, which only luck could tell apart
    scale, groups = torch.tensor(math.log(100.0), dtype=torch.float64), torch.tensor([0, 0, 2, 3])
    one = info_nce(text[1:], text[1:], scale)
    assert info_nce(text, text, scale, groups=groups) == pytest.approx(float(one + math.log(2) / 2), abs=1e-6)
    # told that they do not belong together, SigLIP's loss would push a picture away from its own caption
    bias = torch.tensor(-90.0, dtype=torch.float64)
    assert sigmoid_loss(text, text, scale, bias, groups=groups) < sigmoid_loss(text, text, scale, bias) / 10


@pytest.mark.parametrize("kind", LOSSES)
def test_a_second_derivative_is_refused_not_forgotten(kind):
    image, *rest = features(5)
    with pytest.raises(RuntimeError, match="no second one"):
        torch.autograd.grad(LOSSES[kind][0](image, *rest), image, create_graph=True)


@pytest.mark.parametrize("kind", LOSSES)
def test_numerical_gradients(kind):
    fast, _ = LOSSES[kind]
    assert torch.autograd.gradcheck(lambda *x: fast(*x, chunk_rows=2), features(5))


@pytest.mark.parametrize("kind", LOSSES)
def test_half_precision_features_are_summed_in_float32(kind):
    fast, _ = LOSSES[kind]
    exact = features(9, dtype=torch.float32)
    half = [x.detach().bfloat16() for x in exact[:2]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fast(*half, *exact[2:])
    assert value.dtype == torch.float32
    assert value == fast(*(x.float() for x in half), *exact[2:])


def test_one_tower_may_be_frozen():
    image, text, scale, _ = features(5)
    expected = torch.autograd.grad(info_nce(image, text, scale), text)[0]
    frozen = image.detach()
    info_nce(frozen, text, scale).backward()
    torch.testing.assert_close(text.grad, expected)
    with torch.no_grad():
        assert not info_nce(image, text, scale).requires_grad


def test_the_scale_of_released_siglips_is_open_clips():
    image, text, _, _ = features(8, dtype=torch.float32)
    text = F.normalize(image.detach() + 0.1 * text.detach(), dim=-1)
    scale, bias = torch.tensor(4.765), torch.tensor(-12.93)  # B/16: exp(4.765) = 117
    torch.testing.assert_close(
        sigmoid_loss(image, text, scale, bias), SigLipLoss()(image, text, scale.exp(), bias), rtol=1e-5, atol=1e-5
    )


def test_clips_temperature_is_clamped():
    image, text, _, _ = features(5)
    limit, beyond = (torch.tensor(v, dtype=torch.float64) for v in (math.log(100.0), 9.0))
    assert float(info_nce(image, text, limit)) == pytest.approx(float(info_nce(image, text, beyond)), rel=1e-12)


@pytest.mark.parametrize("beyond", [0.0, 1e-3])
def test_a_temperature_at_its_limit_can_fall(beyond):
    """OpenAI's weights stand there. open_clip's loss has no limit; its trainer clamps after each step."""
    image, text, _, _ = features(5)
    found = []
    for loss, start in ((info_nce, math.log(100.0) + beyond), (open_clips_loss, math.log(100.0))):
        scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        loss(image, text, scale).backward()
        found.append(float(scale.grad))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0] != 0


def open_clips_loss(image, text, log_scale):
    logits = log_scale.exp() * image @ text.T
    own = torch.arange(len(image))
    return (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2


def test_wrong_shapes():
    image, text, scale, _ = features(4)
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(3, 6\)"):
        info_nce(image, text[:3], scale)
    with pytest.raises(ValueError, match="at least one pair"):
        info_nce(image[:0], text[:0], scale)
    with pytest.raises(ValueError, match="chunk_rows=0"):
        info_nce(image, text, scale, chunk_rows=0)


class _Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements that any one tensor made under it has."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("kind", LOSSES)
def test_no_tensor_grows_with_the_square_of_the_batch(kind):
    largest = {}
    for n in (64, 256):
        with _Peak() as peak:
            LOSSES[kind][0](*features(n), chunk_rows=4).backward()
        largest[n] = peak.largest
    assert largest[64] == max(64 * 6, 4 * 64)
    assert largest[256] == 4 * largest[64]  # n * n would be 16 times


# The same gradients in one process, in two, and from a cache.


class Towers(nn.Module):
    """Two small towers with dropout-free layers and a temperature."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6)), nn.Linear(4, 6)
        self.scale, self.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, batch):
        return F.normalize(self.image(batch[0]), dim=1), F.normalize(self.text(batch[1]), dim=1)

    def loss(self, kind, gather=None):
        return lambda i, t: LOSSES[kind][0](i, t, self.scale, self.bias, gather=gather, chunk_rows=5)

    def gradients(self):
        return {k: p.grad.clone() for k, p in self.named_parameters() if p.grad is not None}


def run_cached(*args, **options):
    """The loss; every part has its backward pass before the next is computed."""
    found = []
    for part, value in cached_losses(*args, **options):
        part.backward()
        found.append(value)
    return found[0]


class Counted(Towers):
    """With an image tower that keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.image.insert(1, nn.BatchNorm1d(8))


def test_each_part_counts_once_in_running_statistics():
    images, texts = batch()
    parts = list(zip(images.split(16), texts.split(16), strict=True))
    cached, plain = Counted(), Counted()
    for part in parts:
        plain(part)
    statistics = list(cached.image[1].buffers())
    run_cached(cached, parts, cached.loss("info_nce"), shared=[cached.scale], statistics=statistics)
    assert int(cached.image[1].num_batches_tracked) == len(parts)
    for ours, theirs in zip(statistics, plain.image[1].buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def batch():
    g = torch.Generator().manual_seed(3)
    return torch.randn(64, 5, generator=g), torch.randn(64, 4, generator=g)


def whole(kind):
    towers = Towers()
    value = towers.loss(kind)(*towers(batch()))
    value.backward()
    return value.detach(), towers.gradients()


def assert_equal_gradients(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key] - b[key]).norm() <= 1e-5 * a[key].norm(), key


@pytest.mark.parametrize("kind", LOSSES)
def test_cached_is_whole(kind):
    value, gradients = whole(kind)
    towers, pixels = Towers(), batch()
    parts = [(pixels[0][i : i + 8], pixels[1][i : i + 8]) for i in range(0, 64, 8)]
    cached = run_cached(
        towers, parts, towers.loss(kind), shared=[towers.scale, towers.bias][: 1 + (kind != "info_nce")]
    )
    torch.testing.assert_close(cached, value)
    assert_equal_gradients(gradients, towers.gradients())


def test_cached_replays_its_random_numbers():
    drop, seen = nn.Dropout(0.5), []

    def encode(x):
        out = drop(x)
        seen.append(out.detach().clone())
        return out, out

    x = torch.ones(4, 6, requires_grad=True)
    torch.manual_seed(5)
    run_cached(encode, [x[:2], x[2:]], lambda i, t: (i * t).sum())
    after = torch.rand(1)
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))
    assert not torch.equal(seen[0], seen[1])
    torch.manual_seed(5)
    drop(x[:2]), drop(x[2:])
    assert torch.equal(after, torch.rand(1))  # as if each part had been encoded once


def test_cached_needs_a_part():
    with pytest.raises(ValueError, match="at least one part"):
        run_cached(Towers(), [], lambda i, t: (i * t).sum())


def test_gathering_alone_changes_nothing():
    x = torch.randn(3, 2)
    assert gather_features(x) == (x, 0)


class Step(nn.Module):
    """The loss as a forward pass: Lightning runs training_step within DistributedDataParallel's."""

    def __init__(self, kind):
        super().__init__()
        self.towers, self.kind = Towers(), kind
        if kind == "info_nce":
            del self.towers.bias
            self.towers.bias = None

    def forward(self, part, *parts):
        """A part at once; several from a cache, of which the last is left to whoever called."""
        loss = self.towers.loss(self.kind, gather_features)
        if not parts:
            return loss(*self.towers(part))
        shared = [p for p in (self.towers.scale, self.towers.bias) if p is not None]
        losses = cached_losses(self.towers, (part, *parts), loss, shared=shared)
        for _ in parts:
            next(losses)[0].backward()
        last, value = next(losses)
        return value + (last - last.detach())


CASES = [("info_nce", False), ("sigmoid", False), ("info_nce", True), ("sigmoid", True)]


def _worker(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        mine, done = tuple(x[rank * 32 : rank * 32 + 32] for x in batch()), {}
        for kind, cached in CASES:
            step = Step(kind)
            model = nn.parallel.DistributedDataParallel(step)
            towers = step.towers
            parts = [tuple(x[i : i + 8] for x in mine) for i in range(0, 32, 8)] if cached else [mine]
            value = model(*parts)
            value.backward()
            value = value.detach().clone()
            dist.all_reduce(value)
            done[kind, cached] = value / 2, towers.gradients()
        torch.save(done, f"{results}{rank}")
    finally:
        dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_are_one(tmp_path):
    """Gradients of 1 x 64 are those of 2 processes x 32, at once and cached in parts of 8."""
    results = str(tmp_path / "out")
    torch.multiprocessing.spawn(_worker, (str(tmp_path / "store"), results), nprocs=2, join=True)
    for rank in (0, 1):
        done = torch.load(f"{results}{rank}")
        for kind, cached in CASES:
            value, gradients = done[kind, cached]
            expected, one = whole(kind)
            torch.testing.assert_close(value, expected)
            assert_equal_gradients(one, gradients)
