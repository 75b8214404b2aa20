"""What other programs call: ``/v1/...``. A picture is the body of a request, or one that was sent before, by its id."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from visionzoo.serve.bounds import Refused
from visionzoo.serve.demo import Demo
from visionzoo.serve.pictures import HeldPicture, as_view
from visionzoo.serve.reading import prompts_of, read_picture
from visionzoo.serve.services import attention_of

PictureId = Annotated[
    str | None, Query(description="id of a picture that was sent before, in place of a body", max_length=64)
]
#: For OpenAPI: every question takes a picture as its body.
BODY = {
    "requestBody": {
        "description": "the bytes of a picture, unless `picture` names one",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class PictureInfo(BaseModel):
    """A picture that is kept for a while."""

    id: str
    width: int
    height: int


class LabelAnswer(BaseModel):
    """A label and how likely it is."""

    label: str
    probability: float


class LabelAnswers(BaseModel):
    """Labels of one picture, likeliest first."""

    model: str
    answers: list[LabelAnswer]
    calibrated: bool = False


class MaskAnswer(BaseModel):
    """A mask as COCO writes it: run lengths down the columns, background first."""

    segmentation: dict[str, Any]
    area: int
    bbox: list[int]
    predicted_iou: float


class Embedding(BaseModel):
    """What a model makes of a picture or text."""

    model: str
    embedding: list[float]


class HeatAnswer(BaseModel):
    """Where a model looks: for each cell how often, compared with an equal share."""

    seen: str
    heat: list[list[float]]


class Api:
    """The questions, as methods."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        post: Any = {"methods": ["POST"], "openapi_extra": BODY}
        router.add_api_route("/classify", self.classify, response_model=LabelAnswers, **post)
        router.add_api_route("/zeroshot", self.zeroshot, response_model=LabelAnswers, **post)
        router.add_api_route("/masks", self.masks, response_model=MaskAnswer, **post)
        router.add_api_route("/embed", self.embed, response_model=Embedding, **post)
        router.add_api_route("/attention", self.attention, response_model=HeatAnswer, **post)
        router.add_api_route("/pictures", self.send_picture, response_model=PictureInfo, **post)
        router.add_api_route("/pictures/{picture}", self.show_picture, methods=["GET"], response_class=Response)
        return router

    async def classify(
        self,
        request: Request,
        picture: PictureId = None,
        top: Annotated[int, Query(ge=1, le=1000)] = 5,
        sets: Annotated[float | None, Query(gt=0, lt=1, description="labels that hold the truth this often")] = None,
        unknown_rate: Annotated[float | None, Query(gt=0, lt=1)] = None,
    ) -> LabelAnswers:
        """Name what is in a picture, with the labels that the classifier was trained on."""
        image = await (await self.picture(request, picture)).image()
        found = await self.demo.classify.answers(image, top_k=top, sets=sets, unknown_rate=unknown_rate)
        labeller = self.demo.classify.labeller
        return LabelAnswers(
            model=labeller.name, answers=_answers(found), calibrated=getattr(labeller, "calibration", None) is not None
        )

    async def classify_plainly(self, request: Request) -> Response:
        """:meth:`classify` for a picture that comes alone, as most do: nothing has to be checked."""
        answer = await self.classify(request, None, 5, None, None)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def zeroshot(
        self,
        request: Request,
        label: Annotated[list[str] | None, Query(description="a text; several times for several")] = None,
        template: Annotated[str | None, Query(description="a sentence with {}, or imagenet", max_length=300)] = None,
        multi_label: bool = False,
        top: Annotated[int, Query(ge=1, le=1000)] = 1000,
        picture: PictureId = None,
    ) -> LabelAnswers:
        """Which of the labels that you type fits a picture."""
        labels = label or []
        if len(labels) > self.demo.bounds.labels:
            raise Refused(413, f"{len(labels)} labels are too many; at most {self.demo.bounds.labels} are taken")
        image = await (await self.picture(request, picture)).image()
        found = await self.demo.clip.probabilities(image, labels, template, multi_label=multi_label)
        return LabelAnswers(model=self.demo.clip.model.name, answers=_answers(found[:top]))

    async def masks(
        self,
        request: Request,
        point: Annotated[list[str] | None, Query(description="x,y or x,y,0 for what is not part of it")] = None,
        box: Annotated[str | None, Query(description="x0,y0,x1,y1", max_length=200)] = None,
        text: Annotated[str | None, Query(description="a name, where the model takes names", max_length=300)] = None,
        picture: PictureId = None,
    ) -> MaskAnswer:
        """The mask of one object. Pixels count from the upper left corner."""
        asked = prompts_of(point or [], box, text, self.demo.bounds)
        held = await self.picture(request, picture)
        segment = await self.demo.segmenter()
        return MaskAnswer(**(await segment.mask(held, asked)).to_dict())

    async def embed(
        self,
        request: Request,
        model: Annotated[str, Query(pattern="^(clip|classify)$")] = "clip",
        text: Annotated[str | None, Query(description="a text in place of a picture", max_length=300)] = None,
        picture: PictureId = None,
    ) -> Embedding:
        """What a model makes of a picture, or CLIP of a text: to compare, to search, to train on."""
        clip, labeller = self.demo.clip, self.demo.classify.labeller
        if text is not None:
            if model != "clip" or not text.strip():
                raise ValueError("text is empty; type some words" if model == "clip" else "only model=clip reads text")
            return Embedding(model=clip.model.name, embedding=(await clip.embed_texts([text], None))[0].tolist())
        image = await (await self.picture(request, picture)).image()
        if model == "clip":
            return Embedding(model=clip.model.name, embedding=(await clip.embed(image)).tolist())
        return Embedding(model=labeller.name, embedding=(await self.demo.classify.embed(image)).tolist())

    async def attention(
        self,
        request: Request,
        model: Annotated[str, Query(pattern="^(clip|classify)$")] = "classify",
        picture: PictureId = None,
    ) -> HeatAnswer:
        """Where a model looks in a picture."""
        image = await (await self.picture(request, picture)).image()
        labeller, clip = self.demo.classify.labeller, self.demo.clip.model
        asked = clip if model == "clip" else labeller
        network = clip.visual.trunk if model == "clip" else getattr(labeller, "model", None)
        if asked.takes_pixels or network is None:
            raise ValueError("an exported model shows no attention; give the run")
        return HeatAnswer(**await asyncio.to_thread(attention_of, network, asked.preprocess, image))

    async def send_picture(self, request: Request) -> PictureInfo:
        """Keep a picture for a while, so that several questions need not send it again."""
        held = await self.demo.store.add(await read_picture(request, self.demo.bounds))
        return PictureInfo(id=held.key, width=held.size[1], height=held.size[0])

    async def show_picture(self, picture: str) -> Response:
        """A kept picture as a JPEG of at most 2,048 pixels."""
        image = await self.demo.store.get(picture).image()
        return Response(await asyncio.to_thread(as_view, image), media_type="image/jpeg")

    async def picture(self, request: Request, key: str | None) -> HeldPicture:
        """The picture of a request."""
        if key is not None:
            return self.demo.store.get(key)
        return await self.demo.store.add(await read_picture(request, self.demo.bounds))


def _answers(found: list[tuple[str, float]]) -> list[LabelAnswer]:
    return [LabelAnswer(label=label, probability=probability) for label, probability in found]
