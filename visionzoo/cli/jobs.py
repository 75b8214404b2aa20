"""``visionzoo --help``: what a person may want to do, and the line that does it."""

from __future__ import annotations

#: heading -> (what to type, what it does). Every command is in one of them.
JOBS: dict[str, tuple[tuple[str, str], ...]] = {
    "Train": (
        ("visionzoo fit photos --minutes 10", "the best classifier in that time"),
        ("visionzoo train classify fit --data.path digits", "also clip, mae, segment, ssl"),
        ("visionzoo soup RUN1 RUN2 --out RUN3", "the mean of several runs"),
        ("visionzoo probe RUN --data.path photos", "score frozen features"),
        ("visionzoo models 'vit_*'", "list backbones"),
    ),
    "Look at data": (
        ("visionzoo data check photos", "what can be read, and how it is split"),
        ("visionzoo data doctor photos", "wrong labels, twins, leaks"),
    ),
    "Ask a model": (
        ("visionzoo predict RUN photo.jpg", "name what is in images"),
        ("visionzoo zeroshot photo.jpg --labels cat,dog --model RUN", "with labels of your own"),
        ("visionzoo search photos 'a red car' --model RUN", "find images by words"),
        ("visionzoo masks photo.jpg --point 120,80 --model RUN", "segment what is clicked on"),
        ("visionzoo attention photo.jpg --model RUN", "draw where a model looks"),
        ("visionzoo reconstruct photo.jpg --model RUN", "draw what it makes of hidden patches"),
        ("visionzoo embed photos --model RUN --out f.parquet", "features of images"),
        ("visionzoo demo", "all of that in a browser"),
    ),
    "Trust it": (
        ("visionzoo calibrate RUN --data.path photos", "probabilities that mean what they say"),
        ("visionzoo report RUN", "one page about a run"),
        ("visionzoo bench compare RUN1 RUN2", "whether two runs differ, and where"),
        ("visionzoo bench vit_small_patch16_224", "speed and memory on this machine"),
    ),
    "Carry it away": (
        ("visionzoo export RUN --out FOLDER", "a graph that runs without visionzoo"),
        ("visionzoo push RUN org/name", "publish it with a model card"),
    ),
    "This machine": (
        ("visionzoo cache list", "what is kept between runs"),
        ("visionzoo env", "versions and machine"),
        ("visionzoo completion bash", "have the shell complete words"),
    ),
}


def job_map() -> str:
    """The page: a heading for each kind of job, and a line for each command."""
    width = max(len(example) for lines in JOBS.values() for example, _ in lines)
    parts = ["usage: visionzoo COMMAND ...", ""]
    for heading, lines in JOBS.items():
        parts += [heading, *(f"  {example:<{width}}  {what}" for example, what in lines)]
    return "\n".join([*parts, "", "visionzoo COMMAND --help says more of one; RUN is the folder of a run, or embedded"])
