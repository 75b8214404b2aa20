"""Sentences around a label. A model that learned from captions knows a thing better in a sentence than by itself.

Averaging the embeddings of many sentences takes out what each says beside the label (CLIP, arXiv 2103.00020, section
3.1.4). Numbers can be compared only where the sentences are the same ones: ``imagenet`` are those of the papers, as
open_clip has them; ``varied`` are our own.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

#: A sentence with one ``{}`` for the label, or a function from label to sentence, as open_clip's are.
Template = str | Callable[[str], str]
Templates = Template | Sequence[Template]

#: Eighty ways to caption a picture of something: how it was taken, how it looks, where it is, what it is made as.
VARIED_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of this {}.",
    "a photo of a single {}.",
    "a photo of several {}.",
    "a photo showing a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "this is a {}.",
    "there is a {} here.",
    "here we see a {}.",
    "look, a {}!",
    "my own {}.",
    "somebody's {}.",
    "a snapshot of a {}.",
    "a phone picture of a {}.",
    "a holiday picture of a {}.",
    "an amateur photo of a {}.",
    "a professional photo of a {}.",
    "a prize-winning photo of a {}.",
    "a stock photo of a {}.",
    "a newspaper photo of a {}.",
    "an old photo of a {}.",
    "a recent photo of a {}.",
    "a colour photo of a {}.",
    "a grey photo of a {}.",
    "a faded photo of a {}.",
    "a sharp photo of a {}.",
    "a blurred photo of a {}.",
    "a grainy photo of a {}.",
    "a noisy photo of a {}.",
    "a tiny picture of a {}.",
    "a compressed picture of a {}.",
    "an overexposed photo of a {}.",
    "an underexposed photo of a {}.",
    "a photo of a {} in bright light.",
    "a photo of a {} in dim light.",
    "a photo of a {} at night.",
    "a photo of a {} in the sun.",
    "a photo of a {} in the rain.",
    "a photo of a {} in the snow.",
    "a photo of a {} outdoors.",
    "a photo of a {} indoors.",
    "a photo of a {} on a table.",
    "a photo of a {} on the ground.",
    "a photo of a {} among other things.",
    "a photo of a {} before a plain wall.",
    "a {} on a white background.",
    "a {} in its usual place.",
    "a {} in an unusual place.",
    "a photo of a {} from the side.",
    "a photo of a {} from above.",
    "a photo of a {} from below.",
    "a photo of a {} from behind.",
    "a photo of a {} from far away.",
    "a photo of a {} from very near.",
    "a detail of a {}.",
    "part of a {}.",
    "a whole {}.",
    "a cut-off picture of a {}.",
    "a {} half hidden behind something.",
    "a photo of a huge {}.",
    "a photo of a little {}.",
    "a photo of a new {}.",
    "a photo of an old {}.",
    "a photo of a beautiful {}.",
    "a photo of an ugly {}.",
    "a photo of a tidy {}.",
    "a photo of a worn {}.",
    "a photo of a strange {}.",
    "a photo of a typical {}.",
    "a {} that somebody drew.",
    "a pencil sketch of a {}.",
    "a {} painted in oil.",
    "an illustration of a {}.",
    "a cartoon of a {}.",
    "a statue of a {}.",
    "a {} to play with.",
    "a {} made of paper.",
    "a computer rendering of a {}.",
    "a {} in a computer game.",
)
#: What each name stands for.
NAMED = {
    "imagenet": "the 80 sentences of CLIP's zero-shot numbers on ImageNet",
    "imagenet-simple": "the 7 of them that do best together",
    "varied": "80 sentences of visionzoo's own",
}
#: The label as it stands.
BARE: Template = "{}"


def resolve_templates(templates: Templates | None) -> tuple[Template, ...]:
    """What a user gives as templates, as a tuple.

    Args:
        templates: None for the label by itself, a name of :data:`NAMED`, one template, or several.

    Raises:
        ValueError: for a sentence without exactly one ``{}``, a function that gives no text, or an empty list.
    """
    if templates is None:
        return (BARE,)
    if isinstance(templates, str):
        templates = _named(templates) or (templates,)
    elif callable(templates):
        templates = (templates,)
    if not templates:
        raise ValueError("templates is empty; use None for labels as they stand, or 'a photo of a {}.'")
    for template in templates:
        _check(template)
    return tuple(templates)


def describe_templates(templates: Templates | None) -> str:
    """What results say of the templates that they were made with: a name, the sentence, or how many."""
    if templates is None:
        return "none"
    if isinstance(templates, str):
        return templates
    several = [templates] if callable(templates) else list(templates)
    if len(several) == 1 and isinstance(several[0], str):
        return several[0]
    for name in NAMED:
        if tuple(several) == _named(name):
            return name
    return f"{len(several)} of the caller's own"


def fill(template: Template, label: str) -> str:
    """The sentence about a label."""
    return template.format(label) if isinstance(template, str) else template(label)


def _named(name: str) -> tuple[Template, ...]:
    """The templates of a name; none for what is no name."""
    if name == "varied":
        return VARIED_TEMPLATES
    if name not in NAMED:
        return ()
    import open_clip

    published = {
        "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "imagenet-simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }
    return tuple(published[name])


def _check(template: Template) -> None:
    if not isinstance(template, str):
        said = template("cat") if callable(template) else template
        if not isinstance(said, str) or not said.strip():
            raise ValueError(f"template {template!r} must be a sentence, or give one for a label; for 'cat': {said!r}")
        return
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        fields = []
    if fields != [""]:
        raise ValueError(
            f"template {template!r} must have one {{}} where the label goes, for instance 'a photo of a {{}}.'; "
            f"templates by name: {', '.join(NAMED)}"
        )
