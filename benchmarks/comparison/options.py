"""The options of the comparison: typed, checked at birth, from the command line or a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from comparison.corruptions import CORRUPTIONS, check_names
from comparison.option_help import comments
from comparison.recipes import Recipe
from visionzoo.export.failure import need_export_extra

#: One value, several as a list, or several in one word, with commas.
Many = str | int | float | list[str] | list[int] | list[float]
T = TypeVar("T")
#: The column of networks that were pretrained without labels first; the others are those of ``--recipes``.
PRETRAINED = "pretrained"
#: Settings that may join a comparison later, since what is there does not depend on them.
LATER = ("pretrain.",)
#: Precisions of ONNX files that can be asked for, in the order of their columns.
EXPORTED = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each training may use. Give steps or minutes."""

    steps: int | None = None  #: optimizer steps
    minutes: float | None = None  #: of training, turned into steps of each model by a short trial on this machine
    batch_size: int = 64  #: images per step
    share_exponent: float = 0.0  #: a share f of the images gets f ** this of the steps; 0: all, 1: the same passes


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    path: str  #: class folders, parquet files, a manifest, torchvision:CIFAR10, shapes: as the classify task takes it
    val_path: str | None = None  #: held-out images of their own
    num_workers: int = 1  #: processes that read images
    eval_limit: int | None = None  #: held-out images for accuracy and calibration; none for all
    corruption_limit: int | None = 500  #: held-out images that are corrupted; none for all


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A pretrained backbone that is not trained: a linear classifier on its features, beside the networks."""

    model: str | None = None  #: name of a backbone; none for no such row
    weights: str | None = None  #: as ``create_backbone`` takes them
    image_size: int | None = None  #: pixels that the images are enlarged to; none for its own
    fractions: Many = "0.02,0.2"  #: of the training images
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Masked pretraining without labels before the equal recipe, for the networks that can: one more column."""

    steps: int | None = None  #: optimizer steps on all training images; none for no such column
    method: Literal["auto", "mae", "simmim"] = "auto"  #: auto is mae where a network can drop tokens, else simmim
    base_lr: float = 1.5e-4  #: peak learning rate for 256 images a step, scaled linearly to budget.batch_size
    fractions: Many | None = None  #: of the images with labels that follow; none for those of the equal recipe


@dataclass(frozen=True, kw_only=True)
class Export:
    """ONNX files of each training on the most images: their size and speed, and what they answer."""

    precisions: Many | None = None  #: fp32, int8 or both; none for no such columns


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that can be said; see docs/benchmarks.md."""

    data: Data
    models: Many  #: names; those that are not ours are timm's
    out: str  #: folder of the results; the same command goes on there
    budget: Budget
    image_size: int = 224  #: height and width in pixels
    recipes: Many = "equal,published"  #: columns: equal, published or both
    seeds: Many = "0,1,2"  #: one training each, of every network, recipe and share
    fractions: Many = "0.01,0.1,1"  #: of the training images, for the equal recipe
    published_fractions: Many = "1"  #: of the training images, for the published recipes
    corruptions: Many = "all"  #: names, all or none
    reach: Many | None = None  #: top-1 whose cost is told, 0.8 is 80 %; none for the median of the networks' best
    equal: Recipe = field(default_factory=Recipe)  #: the recipe that is the same for every model
    precision: Literal["fp32", "bf16"] = "fp32"  #: of training, throughput and latency; evaluation computes in fp32
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"  #: of images and convolutions
    device: str | None = None  #: none for a GPU where there is one
    threads: int | None = None  #: of the CPU; none for torch's own choice
    speed_batch: int = 32  #: images per batch in throughput and peak memory
    speed_rounds: int = 10  #: of throughput; latency takes four times as many, and 20 at least
    title: str = "CNN against ViT"  #: of the page
    probe: Probe = field(default_factory=Probe)
    pretrain: Pretrain = field(default_factory=Pretrain)
    export: Export = field(default_factory=Export)


@dataclass(frozen=True)
class Plan:
    """The options with every list as a list, checked as far as they can be without the data."""

    options: Options
    models: list[str]
    recipes: list[str]  #: columns
    seeds: list[int]
    fractions: dict[str, list[float]]  #: by recipe column
    probe_fractions: list[float]  #: empty without a probe
    corruptions: list[str]
    reach: list[float]  #: top-1, 0 to 1; empty where results decide
    exported: list[str]  #: precisions of ONNX files; empty for none
    device: str

    @property
    def on_most_images(self) -> list[str]:
        """The recipes that are run on the largest share of the images that any is run on."""
        largest = {recipe: max(shares) for recipe, shares in self.fractions.items()}
        return [recipe for recipe in self.recipes if largest[recipe] == max(largest.values())]

    def settings(self) -> dict[str, Any]:
        """What shapes a result: everything but which models, seeds and shares there are, and where they go."""
        values = asdict(self.options)
        for name in (
            "models",
            "out",
            "recipes",
            "seeds",
            "fractions",
            "published_fractions",
            "title",
            "probe",
            "reach",
        ):
            values.pop(name)
        values["data"].pop("path"), values["data"].pop("val_path")  # the fingerprint says what they hold
        values["pretrain"].pop("fractions")
        if PRETRAINED not in self.recipes:
            values.pop("pretrain")
        values.pop("export")
        if self.exported:
            values["export"] = {"precisions": self.exported}
        return {**values, "corruptions": self.corruptions, "device": self.device}


def many(name: str, value: Many, to: Callable[[Any], T]) -> list[T]:
    """``"a,b"``, ``["a", "b"]`` or one value as a list without repetitions.

    Raises:
        ValueError: for an empty list or a value of another type.
    """
    parts: Sequence[Any] = value if isinstance(value, list) else str(value).split(",")
    words = [str(p).strip() for p in parts if str(p).strip()]
    if not words:
        raise ValueError(f"{name} is empty; give one or more, with commas")
    try:
        return list(dict.fromkeys(to(w) for w in words))
    except ValueError as error:
        raise ValueError(f"{name}={value!r}: {error}") from error


def check(options: Options) -> Plan:
    """The options as a plan.

    Raises:
        ValueError: for the first one that is wrong, with its value and its limit.
    """
    budget = options.budget
    if (budget.steps is None) == (budget.minutes is None):
        raise ValueError("give one of budget.steps and budget.minutes")
    least = (
        ("budget.steps", budget.steps, 5),
        ("budget.batch_size", budget.batch_size, 2),
        ("image_size", options.image_size, 8),
        ("data.eval_limit", options.data.eval_limit, 1),
        ("data.corruption_limit", options.data.corruption_limit, 1),
        ("speed_batch", options.speed_batch, 1),
        ("speed_rounds", options.speed_rounds, 1),
        ("threads", options.threads, 1),
        ("pretrain.steps", options.pretrain.steps, 5),
        ("probe.batch_size", options.probe.batch_size, 1),
        ("data.num_workers", options.data.num_workers, 0),
    )
    for name, value, smallest in least:
        if value is not None and value < smallest:
            raise ValueError(f"{name}={value} must be at least {smallest}")
    if budget.minutes is not None and budget.minutes <= 0:
        raise ValueError(f"budget.minutes={budget.minutes} must be above 0")
    if options.device not in (None, "cpu", "cuda", "cuda:0"):
        raise ValueError(f"device={options.device} must be cpu or cuda; CUDA_VISIBLE_DEVICES chooses one of several")
    recipes = many("recipes", options.recipes, str)
    if unknown := sorted(set(recipes) - {"equal", "published"}):
        raise ValueError(f"recipes={', '.join(unknown)} must be equal, published or both")
    fractions = {
        "equal": sorted(many("fractions", options.fractions, float)),
        "published": sorted(many("published_fractions", options.published_fractions, float)),
    }
    before = options.pretrain
    if before.steps is not None:
        if before.base_lr <= 0:
            raise ValueError(f"pretrain.base_lr={before.base_lr} must be above 0; the papers use 1e-4 to 1.5e-4")
        recipes.append(PRETRAINED)
        shares = before.fractions
        fractions[PRETRAINED] = (
            fractions["equal"] if shares is None else sorted(many("pretrain.fractions", shares, float))
        )
    if not 0 <= budget.share_exponent <= 1:
        raise ValueError(f"budget.share_exponent={budget.share_exponent} must be from 0 to 1")
    asked = options.probe
    if asked.model is not None and asked.weights is None:
        raise ValueError(f"probe.model={asked.model} needs weights; give probe.weights (random for none)")
    probe_fractions = sorted(many("probe.fractions", asked.fractions, float)) if asked.model else []
    for shares in [*fractions.values(), probe_fractions]:
        if bad := [f for f in shares if not 0 < f <= 1]:
            raise ValueError(f"fraction {bad[0]:g} must be above 0 and at most 1 (0.1 is 10 %)")
    targets = [] if options.reach is None else sorted(many("reach", options.reach, float))
    if bad := [t for t in targets if not 0 < t <= 1]:
        raise ValueError(f"reach={bad[0]:g} must be above 0 and at most 1 (0.8 is 80 %)")
    names = many("corruptions", options.corruptions, str)
    names = list(CORRUPTIONS) if names == ["all"] else [] if names == ["none"] else names
    check_names(names)
    wanted = options.export.precisions
    precisions = [] if wanted is None else many("export.precisions", wanted, str)
    if bad_names := [p for p in precisions if p not in EXPORTED]:
        raise ValueError(f"export.precisions={bad_names[0]} must be {' or '.join(EXPORTED)}, or both with a comma")
    if precisions:
        need_export_extra()
    return Plan(
        options,
        models=many("models", options.models, str),
        recipes=recipes,
        seeds=many("seeds", options.seeds, int),
        fractions={r: fractions[r] for r in recipes},
        probe_fractions=probe_fractions,
        corruptions=names,
        reach=targets,
        exported=[p for p in EXPORTED if p in precisions],
        device=options.device or _best_device(),
    )


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def parse(argv: Sequence[str], about: str | None = None) -> Options:
    """:func:`parse_options` of the comparison."""
    return parse_options(Options, argv, "python benchmarks/cnn_vs_vit.py", about)


def parse_options(kind: type[T], argv: Sequence[str], program: str, about: str | None) -> T:
    """Options of a command line; ``--config FILE`` reads a YAML file, and what follows it wins.

    Args:
        kind: a dataclass of options.
        argv: the command line.
        program: what it is called in help and errors.
        about: what it does, for the help: of a docstring the first line.

    Raises:
        visionzoo.cli.suggest.UsageError: one line about what is wrong.
        FileNotFoundError: for a configuration file that is not there.
    """
    from jsonargparse import ActionConfigFile

    from visionzoo.cli.options import OneLineParser, check_options

    parser = OneLineParser(prog=program, description=(about or "").partition("\n")[0])
    if not any(a.dest == "config" for a in parser._actions):
        parser.add_argument("--config", action=ActionConfigFile, help="options from a YAML file")
    parser.add_class_arguments(kind, None, instantiate=True)
    said = comments(kind)
    for action in parser._actions:
        if action.dest in said and not action.help:
            action.help = said[action.dest]
    check_options(argv, [s.lstrip("-") for a in parser._actions for s in a.option_strings])
    found = parser.instantiate_classes(parser.parse_args(list(argv))).as_dict()
    found.pop("config", None)
    return kind(**found)
