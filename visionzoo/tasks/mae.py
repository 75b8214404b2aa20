"""Pretrain a backbone on images without labels, by hiding most of each one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from visionzoo.backbones import backbone_info
from visionzoo.data.keys import sample_key
from visionzoo.models.bundle import ModelConfig
from visionzoo.models.mae import MAE, MAE_BACKBONES, create_mae
from visionzoo.models.masking import draw_noise
from visionzoo.models.simmim import SimMIM, create_simmim
from visionzoo.runs import RunFolder
from visionzoo.runs.gallery import GalleryAbout, GalleryPicture, sheet_step, write_gallery
from visionzoo.tasks.base import VisionTask
from visionzoo.tasks.batches import image_batch
from visionzoo.tasks.engine.sheets import Sheets
from visionzoo.tasks.handover import describe_handover, run_config, trunk_options
from visionzoo.tasks.interface import LossPart
from visionzoo.tasks.pictures import side_by_side
from visionzoo.types import ImageBatch
from visionzoo.weights import load_weights

Method = Literal["auto", "mae", "simmim"]
#: What the papers use, where neither the user nor the run that training starts from says otherwise.
MAE_USUAL: dict[str, Any] = {
    "mask_ratio": 0.75,
    "norm_pix_loss": True,
    "decoder_dim": None,
    "decoder_depth": None,
    "decoder_heads": None,
    "positions": "sincos",
}
SIMMIM_USUAL: dict[str, Any] = {"mask_ratio": 0.6, "mask_patch_size": 32}


class MaeTask(VisionTask):
    """Masked pretraining: MAE (arXiv 2111.06377) where the backbone can drop tokens, else SimMIM (arXiv 2111.09886).

    The defaults are MAE's recipe: AdamW with betas 0.9 and 0.95, learning rate scaled by the effective batch, linear
    warm-up, cosine.

    Args:
        backbone: a name from ``visionzoo models``, or mae_vit_{base_patch16,large_patch16,huge_patch14}; not needed
            when weights is a run folder.
        method: mae, simmim, or auto, which takes mae where the backbone has the capability tokens.
        weights: go on from these: a run of this task, or a released MAE or SimMIM checkpoint; none starts from scratch.
        backbone_weights: instead of weights, those of the encoder alone: a file, a folder, a run of any task, or
            timm:tag. What reconstructs starts from scratch.
        image_size: height and width of the model's input in pixels, one number or two; none for the backbone's own.
        in_chans: channels of the images.
        in_chans_policy: how stored weights become in_chans channels, see visionzoo.load_weights.
        mask_ratio: share of each image that is hidden; none for the run's in weights, else 0.75 (mae) or 0.6 (simmim).
        norm_pix_loss: predict each patch relative to its own mean and deviation (mae; better features); none for the
            run's, else true.
        decoder_dim: width of MAE's decoder; none for the run's, else two thirds of the encoder's, at most 512.
        decoder_depth: number of its blocks; none for the run's, else two thirds of the encoder's, at most 8.
        decoder_heads: attention heads of each; none for the run's, else decoder_dim / 32.
        positions: sincos gives the encoder fixed positions, as in the paper; learned leaves it its own (mae); none for
            the run's, else learned with backbone_weights and sincos without.
        mask_patch_size: side in pixels of what is hidden at once (simmim); none for the run's, else 32.
        drop_path: stochastic-depth rate of the encoder's last block.
        base_lr: learning rate for 256 images per optimizer step, scaled linearly to the real number of them.
        lr: learning rate as it is, in place of base_lr.
        betas: AdamW's two momenta.
        warmup_epochs: length of the linear warm-up; none for the paper's 40 epochs, or a tenth of a shorter run.
        sheet_every_n_steps: optimizer steps between reconstruction sheets; 0 draws one at the end only.
        sheet_images: images on a sheet.
    """

    task_name = "mae"
    monitor = "val/loss"
    monitor_mode = "min"
    prediction_columns = ("loss",)
    settled = frozenset(
        {"backbone", "method", "image_size", "in_chans", "mask_ratio", "norm_pix_loss", "decoder_dim"}
        | {"decoder_depth", "decoder_heads", "positions", "mask_patch_size"}
    )

    model: MAE | SimMIM

    def __init__(
        self,
        *,
        backbone: str | None = None,
        method: Method = "auto",
        weights: str | None = None,
        backbone_weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        in_chans_policy: str | None = None,
        mask_ratio: float | None = None,
        norm_pix_loss: bool | None = None,
        decoder_dim: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        positions: Literal["sincos", "learned"] | None = None,
        mask_patch_size: int | None = None,
        drop_path: float = 0.0,
        base_lr: float = 1.5e-4,
        lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_epochs: float | None = None,
        sheet_every_n_steps: int = 500,
        sheet_images: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            base_lr=base_lr if lr is None else None,
            lr=base_lr if lr is None else lr,
            betas=betas,
            warmup_epochs=warmup_epochs or 0.0,
            **kwargs,
        )
        if method not in ("auto", "mae", "simmim"):
            raise ValueError(f"method={method!r} is unknown; use auto, mae or simmim")
        if sheet_every_n_steps < 0 or sheet_images < 1:
            raise ValueError(
                f"sheet_every_n_steps={sheet_every_n_steps} must be at least 0, sheet_images={sheet_images} at least 1"
            )
        self.sheet_every_n_steps, self.sheet_images = sheet_every_n_steps, sheet_images
        self._usual_warmup = warmup_epochs is None

        if weights is not None and backbone_weights is not None:
            raise ValueError("weights and backbone_weights are both given; weights of a whole model hold its backbone")
        if backbone_weights is not None and positions == "sincos":
            raise ValueError("positions='sincos' would replace those of backbone_weights; leave it out")
        found, run = _starting_point(weights, backbone_weights, {"backbone": backbone, "image_size": image_size})
        self.method = _method(method, found["backbone"]) if run is None or method != "auto" else run.task
        given = {
            "mask_ratio": mask_ratio,
            "norm_pix_loss": norm_pix_loss,
            "decoder_dim": decoder_dim,
            "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads,
            "positions": positions,
            "mask_patch_size": mask_patch_size,
        }
        known = {} if run is None else run.architecture
        usual = {"mae": MAE_USUAL, "simmim": SIMMIM_USUAL}[self.method]
        if backbone_weights is not None and "positions" in usual:
            usual = {**usual, "positions": "learned"}
        chosen = {k: known.get(k, v) if given[k] is None else given[k] for k, v in usual.items()}
        create: Any = create_mae if self.method == "mae" else create_simmim
        model: MAE | SimMIM = create(**found, **chosen, in_chans=in_chans, drop_path=drop_path)
        self.load_report = load_weights(model, weights, in_chans_policy=in_chans_policy) if weights else None
        if backbone_weights is not None:
            report = load_weights(model.encoder, backbone_weights, in_chans_policy=in_chans_policy)
            self.opening_line = describe_handover(report, model.encoder)
        self.built = {**found, **chosen, "method": self.method, "weights": None, "in_chans_policy": None}
        self.built["backbone_weights"] = None
        self.backbone_name: str = found["backbone"]
        self.use_model(model, in_chans)
        self.held_out_loss = MeanMetric()

    def use_model(self, model: nn.Module, in_chans: int | None = None) -> None:
        """Also choose what is compiled: the loss."""
        super().use_model(model, in_chans)
        assert isinstance(model, MAE | SimMIM)
        self.network = model.loss if not self.compile_model else torch.compile(model.loss)

    def take_batch(self, batch: Any) -> ImageBatch:
        """(B, C, H, W) uint8, alone or with labels, -> :class:`ImageBatch`."""
        return image_batch(batch)

    def loss_parts(self, batch: ImageBatch, size: int | None) -> Iterator[LossPart]:
        """The loss of (B, C, H, W) uint8 images; what is hidden is drawn for the whole batch."""
        images, done = batch.images, 0
        rows, columns = self.model.grid_of((images.shape[2], images.shape[3]))
        noise = draw_noise(images, rows * columns)
        for some, theirs in zip(images.split(size or len(images)), noise.split(size or len(images)), strict=True):
            done += len(some)
            # as much is hidden of every image, so each counts the same
            loss = self.network(self.normalize(some), theirs) * (len(some) / len(images))
            yield LossPart(loss, {}, len(some), done == len(images))

    def _noise(self, images: Tensor, index: Tensor) -> Tensor:
        """(B, N) noise that depends on each image's position in the data only, so that every epoch hides the same."""
        rows, columns = self.model.grid_of((images.shape[2], images.shape[3]))
        seeded = (torch.Generator().manual_seed(sample_key(i)) for i in index.tolist())
        return torch.stack([torch.rand(rows * columns, generator=g) for g in seeded]).to(images.device)

    def update_evaluation(self, batch: ImageBatch) -> None:
        """Add the loss of (B, C, H, W) images under their own fixed masks."""
        if len(batch.images) == 0:
            return
        images = self.normalize(batch.images)
        self.held_out_loss.update(self.model.loss(images, self._noise(images, batch.index)), len(images))

    def finish_evaluation(self) -> dict[str, Tensor]:
        """``loss``, the mean over all held-out images."""
        loss = self.held_out_loss.compute()
        with torch.inference_mode(False):  # or its state could never be changed by a training run that follows
            self.held_out_loss.reset()
        return {"loss": loss}

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """(B,) loss of each image."""
        batch = self.take_batch(batch)
        images = self.normalize(batch.images)
        noise = self._noise(images, batch.index)
        return torch.stack([self.model.loss(i[None], n[None]) for i, n in zip(images, noise, strict=True)])

    def prediction_rows(self, outputs: Tensor) -> list[tuple[str, ...]]:
        """The loss of each image, from (B,)."""
        return [(f"{value:.6f}",) for value in outputs.tolist()]

    def export_model(self) -> tuple[nn.Module, ModelConfig]:
        """The MAE or SimMIM, decoder included."""
        config = ModelConfig(task=self.method, architecture=self.model.architecture, preprocess=self.preprocess)
        return self.model, config

    def run_callbacks(self) -> list[Callback]:
        """Sheets of reconstructions while it learns."""
        return [Sheets(self.sheet_every_n_steps, self.sheet_images)]

    @torch.no_grad()
    def draw_sheet(self, batch: ImageBatch, out: Path, title: str = "") -> Path:
        """Draw original, masked image, reconstruction and reconstruction with the visible patches of each image (B, C,
        H, W); and keep them one by one, for a page."""
        from visionzoo.viz.reconstruction import reconstruction_sheet

        images = self.normalize(batch.images.to(self.device))
        made = self.model.reconstruct(images, self._noise(images, batch.index))
        pictures = [self.normalize.invert(p).permute(0, 2, 3, 1).cpu().numpy() for p in made[:4]]
        kept = [
            GalleryPicture("", "original, masked and reconstructed image", (), side_by_side(tiles), place)
            for *tiles, place in zip(*pictures[:3], batch.index.tolist(), strict=True)
        ]
        note = "; ".join(filter(None, ["Each is the original, what is seen of it, and the reconstruction", made.note]))
        about = GalleryAbout(section="Reconstructions", note=note, wide=True, step=sheet_step(out))
        write_gallery(out.with_suffix(".parquet"), kept, about)
        return reconstruction_sheet(pictures, out, note=made.note, title=title)

    def draw_results(self, folder: RunFolder) -> None:
        """Draw reconstructions of held-out images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        batch = data.sample_batch(self.sheet_images)
        if len(batch.images):
            self.draw_sheet(batch, folder.reconstruction, title="Held-out images")

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The reconstruction loss."""
        return f"reconstruction loss {metrics['loss']:.4f} on held-out images" if "loss" in metrics else ""

    def _warmup(self, total: int) -> int:
        if not self._usual_warmup or self.warmup_steps > 0:
            return super()._warmup(total)
        per_epoch = self._steps_per_epoch()
        return total // 10 if per_epoch is None else min(round(40 * per_epoch), total // 10)


def _method(method: str, backbone: str) -> str:
    if method != "auto":
        return method
    return "mae" if backbone in MAE_BACKBONES or "tokens" in backbone_info(backbone).capabilities else "simmim"


def _starting_point(
    weights: str | None, backbone_weights: str | None, given: dict[str, Any]
) -> tuple[dict[str, Any], ModelConfig | None]:
    """Backbone and size, and the configuration of the run in ``weights``, if it is one."""
    config = run_config(weights)
    if config is not None and config.task not in ("mae", "simmim"):
        raise ValueError(
            f"{weights} holds a model of task {config.task!r}, which has nothing to reconstruct with; "
            "give it as --model.backbone_weights, or a run of this task"
        )
    if given["backbone"] in MAE_BACKBONES and config is None and run_config(backbone_weights) is None:
        return given, None
    plain = {**given, "backbone": MAE_BACKBONES.get(given["backbone"], given["backbone"])}
    found = trunk_options(weights or backbone_weights, plain)
    if config is not None:
        found["backbone"] = config.architecture["backbone"]  # mae_vit_... brings its preprocessing
    return found, config
