"""What only the page asks: the folder, what is drawn in it, everything-mode, search and exports."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from visionzoo.data.images import open_image
from visionzoo.serve.annotations import DrawnObject, DrawnPicture
from visionzoo.serve.bounds import Refused
from visionzoo.serve.demo import Demo
from visionzoo.serve.exports import coco_file, cut_out, label_map
from visionzoo.serve.pictures import as_view, decode
from visionzoo.serve.reading import read_model
from visionzoo.terminal import shell_quoted

THUMBNAIL = 192  #: pixels


class SentObject(BaseModel):
    """An object as the page sends it."""

    name: str = Field(max_length=300)
    segmentation: dict[str, Any]


class SentObjects(BaseModel):
    """The objects of one picture."""

    file_name: str = Field(default="picture", max_length=300)
    objects: list[SentObject]
    revision: str | None = Field(default=None, max_length=64)  #: of the picture that they were made of


class EverythingOptions(BaseModel):
    """How everything is searched for."""

    points_per_side: int = Field(default=16, ge=1)
    min_iou: float = Field(default=0.88, ge=0, le=1)
    min_stability: float = Field(default=0.95, ge=0, le=1)


class PageApi:
    """The questions, as methods."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/page", include_in_schema=False)
        router.add_api_route("/state", self.state, methods=["GET"])
        router.add_api_route("/folder", self.folder, methods=["GET"])
        router.add_api_route("/folder/{index}/thumbnail", self.thumbnail, methods=["GET"])
        router.add_api_route("/folder/{index}/open", self.open, methods=["POST"])
        router.add_api_route("/folder/{index}/objects", self.save, methods=["POST"])
        router.add_api_route("/pictures/{picture}/everything", self.everything, methods=["POST"])
        router.add_api_route("/pictures/{picture}/export", self.export, methods=["POST"])
        router.add_api_route("/search", self.search, methods=["POST"])
        router.add_api_route("/confusion", self.confusion, methods=["GET"])
        router.add_api_route("/confusion/{row}", self.confusion_picture, methods=["GET"])
        router.add_api_route("/reload", self.reload, methods=["POST"])
        return router

    async def state(self) -> dict[str, Any]:
        """What there is."""
        demo = self.demo
        calibration = getattr(demo.classify.labeller, "calibration", None)
        labeller, clip = demo.classify.labeller, demo.clip
        return {
            "classify": {
                "name": labeller.name,
                "labels": list(labeller.labels)[:1000],
                "levels": [] if calibration is None else list(calibration.levels),
                "attention": "attention_maps" in getattr(getattr(labeller, "model", None), "capabilities", ()),
            },
            "clip": {
                "name": clip.model.name,
                "labels": list(clip.labels)[:60],
                "texts": clip.takes_texts,
                "attention": "attention_maps" in clip.model.visual.trunk.capabilities,
            },
            "segment": {"name": demo.segment_name, **demo.segment_abilities},
            "folder": {"name": demo.folder.path.name, "count": len(demo.folder), "own": demo.has_own_pictures},
            "retrain": self._retrain(),
        }

    def _retrain(self) -> str:
        """The command that trains on what was drawn."""
        demo = self.demo
        path, root = demo.annotations.path.resolve(), demo.folder.root
        where = f"--data.path {shell_quoted(str(path))} --data.image_root {shell_quoted(root)}"
        name = "embedded:nuclei" if demo.segment_name == "embedded" else demo.segment_name
        weights = f"--model.weights {shell_quoted(name)}"
        return f"python train.py segment fit {where} {weights} --run_dir {shell_quoted(str(demo.retrained))}"

    async def folder(self) -> dict[str, Any]:
        """The pictures of the folder, and how many objects each has."""
        counts = self.demo.annotations.counts()
        return {"pictures": [{"name": name, "objects": counts.get(name, 0)} for name in self.demo.folder.names]}

    async def thumbnail(self, index: int) -> Response:
        """A small JPEG."""
        data = await asyncio.to_thread(self.demo.folder.read, index)
        image = await asyncio.to_thread(decode, data, self.demo.bounds)
        return Response(await asyncio.to_thread(as_view, image, THUMBNAIL), media_type="image/jpeg")

    async def open(self, index: int) -> dict[str, Any]:
        """A picture of the folder, and what was drawn in it."""
        data = await asyncio.to_thread(self.demo.folder.read, index)
        name = self.demo.folder.names[index]
        try:
            held = await self.demo.store.add(data)
        except Refused as error:
            raise Refused(error.status, f"{name}: {error.why}") from None
        revision = self.demo.annotations.revision(name)
        drawn = self.demo.annotations.objects(name, held.size)
        return {
            "id": held.key,
            "width": held.size[1],
            "height": held.size[0],
            "index": index,
            "name": name,
            "revision": revision,
            "objects": [one.to_dict() for one in drawn],
        }

    async def save(self, request: Request, index: int) -> dict[str, Any]:
        """Keep what was drawn in a picture of the folder."""
        sent = await read_model(request, SentObjects, self.demo.bounds)
        held = await self.demo.store.add(await asyncio.to_thread(self.demo.folder.read, index))
        drawn = DrawnPicture(self.demo.folder.names[index], held.size, self._objects(sent, held.size))
        revision = await asyncio.to_thread(self.demo.annotations.save, drawn, sent.revision)
        return {"objects": len(drawn.objects), "file": str(self.demo.annotations.path), "revision": revision}

    def _objects(self, sent: SentObjects, size: tuple[int, int]) -> tuple[DrawnObject, ...]:
        if len(sent.objects) > self.demo.bounds.objects:
            raise Refused(
                413, f"{len(sent.objects)} objects are too many; at most {self.demo.bounds.objects} are taken"
            )
        read = (DrawnObject.read(one.name, one.segmentation, size) for one in sent.objects)
        return tuple(one for one in read if one.runs.area)

    async def everything(self, request: Request, picture: str) -> StreamingResponse:
        """Lines of JSON, the last with the masks."""
        options = await read_model(request, EverythingOptions, self.demo.bounds)
        if options.points_per_side > self.demo.bounds.grid:
            raise ValueError(f"a grid of {options.points_per_side} is too fine; at most {self.demo.bounds.grid} a side")
        segment = await self.demo.segmenter()
        lines = await segment.everything(
            await self.demo.store.get(picture).image(),
            points_per_side=options.points_per_side,
            points_per_batch=32,  # so that there is progress to see
            pred_iou_thresh=options.min_iou,
            stability_score_thresh=options.min_stability,
        )
        return StreamingResponse(lines, media_type="application/x-ndjson")

    async def export(
        self, request: Request, picture: str, kind: Annotated[Literal["coco", "labels", "cutout"], Query()]
    ) -> Response:
        """A file of what was drawn."""
        held = self.demo.store.get(picture)
        sent = await read_model(request, SentObjects, self.demo.bounds)
        objects = self._objects(sent, held.size)
        if kind == "coco":
            return Response(coco_file(DrawnPicture(sent.file_name, held.size, objects)), media_type="application/json")
        if kind == "labels":
            return Response(await asyncio.to_thread(label_map, objects, held.size), media_type="image/png")
        image = await asyncio.to_thread(open_image, held.data)
        return Response(await asyncio.to_thread(cut_out, image, objects), media_type="image/png")

    async def search(
        self,
        text: Annotated[str | None, Query(max_length=300)] = None,
        picture: Annotated[str | None, Query(max_length=64)] = None,
        top: Annotated[int, Query(ge=1, le=200)] = 24,
    ) -> dict[str, Any]:
        """The pictures of the folder by words, or by a picture."""
        if (text is None) == (picture is None):
            raise ValueError("search by words or by a picture: give one of them")
        query = text if picture is None else self.demo.store.get(picture).data
        assert query is not None
        return {"found": await self.demo.find(query, top)}

    async def confusion(self) -> dict[str, Any]:
        """What the classifier takes for what, to be put into the page; or why that is not known."""
        return await asyncio.to_thread(self.demo.confusion.shown, "/page/confusion")

    async def confusion_picture(self, row: int) -> Response:
        """A picture of a cell."""
        picture, kind = await asyncio.to_thread(self.demo.confusion.picture, row)
        return Response(picture, media_type=f"image/{kind}")

    async def reload(self) -> dict[str, Any]:
        """Take the newest segmenter that was trained on what was drawn."""
        return {"name": await self.demo.reload()}
