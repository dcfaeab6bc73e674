"""All that a training recipe may say, and what it means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from embedkit.errors import EmbedkitError, UsageError
from embedkit.limits import shown
from embedkit.recipe import digest, fill, find_recipe, merged, read_recipe
from embedkit.train.contrastive import Denominator
from embedkit.train.elastic import Grid

LossName = Literal[
    "info_nce",
    "cosent",
    "angle",
    "triplet",
    "margin_mse",
    "kl",
    "list_net",
    "in_batch_distillation",
    "embedding_distillation",
]

TAKERS: Mapping[
    str, Sequence[LossName]
] = {  # setting of a loss -> the losses that look at it; all, where it is not named
    "temperature": ("info_nce", "kl", "list_net", "in_batch_distillation"),
    "teacher_temperature": ("kl", "list_net"),
    "learn_temperature": ("info_nce",),
    "denominator": ("info_nce",),
    "margin": ("info_nce", "triplet"),
    "focal_gamma": ("info_nce",),
    "mixing": ("info_nce",),
    "scale": ("cosent", "angle"),
    "gather": ("info_nce", "cosent", "angle", "in_batch_distillation"),
    "teacher": ("in_batch_distillation", "embedding_distillation"),
}


@dataclass(frozen=True)
class Data:
    """One task: a file or folder, and how its texts are prompted."""

    path: str  # see data.py; $NAME is taken from the environment
    name: str | None = None  # the file's when left out
    split: str | None = (
        None  # rows whose field "split" says so; of a BEIR folder the judgements, those of "train" when left out
    )
    texts: tuple[
        str, ...
    ] = ()  # fields whose texts are taken one by one, for losses that need no pairs; "anchor" and "positive"
    # of a BEIR folder
    paired: bool = False  # the texts that a row has in these fields are positives of each other: pairs, two by two
    weight: float | None = None  # of the task in the mixture; its number of examples when left out
    query_prompt: str | None = None  # in front of anchors; the model's own for queries when left out
    document_prompt: str | None = (
        None  # in front of positives and negatives; the model's own for documents when left out
    )
    in_batch: bool = True  # false: only the examples' own negatives count, as for classification
    limit: int | None = None  # the first so many examples


@dataclass(frozen=True)
class Batch:
    """What one step of the optimizer sees."""

    size: int = 64  # examples, over all processes
    kind: Literal["homogeneous", "semi_homogeneous", "blended"] = "homogeneous"
    ratio: float = 0.5  # of a semi-homogeneous batch, the share that stays with its task
    negatives: int = 0  # hard negatives an example, drawn from its own
    tokens: int | None = (
        None  # padded tokens that go through the model at once; 512 on a CPU, 16,384 on a GPU when left out
    )
    cached: bool = False  # gradient caching: memory by `tokens`, not by `size`, for a third more time


@dataclass(frozen=True)
class Loss:
    """One term of the loss."""

    name: LossName
    weight: float = 1.0
    temperature: float = 0.05
    teacher_temperature: float | None = (
        None  # of kl and list_net, for the teacher's scores; `temperature` when left out
    )
    learn_temperature: bool = False  # of info_nce, `temperature` being where it begins
    denominator: Denominator = "all"
    margin: float | None = None  # of info_nce: false negatives above it are masked; of triplet: the margin, 0.3
    focal_gamma: float = 0.0
    mixing: Literal["none", "pair", "list", "both"] = "none"
    scale: float = 20.0  # of cosent and angle
    gather: bool = True  # of info_nce, cosent, angle and in_batch_distillation: the rows of all processes
    teacher: str | None = None  # of the two distillations of rows; the recipe's model, untouched, when left out

    def __post_init__(self) -> None:
        for field in fields(self):
            takers = TAKERS.get(field.name, (self.name,))
            if self.name not in takers and (value := getattr(self, field.name)) != field.default:
                raise UsageError(
                    f"{field.name} is {shown(value)} with the loss {self.name}, which takes none; leave it out, or choose one that does: "
                    f"{', '.join(takers)}."
                )


@dataclass(frozen=True)
class Elastic:
    """Rows that may be cut."""

    recipe: Literal["matryoshka", "embedkit", "2dmse", "2dmse_weighted", "ese"] = "embedkit"
    dims: tuple[int, ...] = ()  # the full width is always trained as well
    weights: tuple[float, ...] = ()  # of the dims, for matryoshka; 1 each when left out
    layers: tuple[int, ...] = ()  # the last is always trained as well; none for matryoshka
    # left out, dims and layers of 2dmse and 2dmse_weighted are their authors': 8, 16, 32, ... and all
    layers_per_step: int = 1  # beside the last, for embedkit

    def __post_init__(self) -> None:
        if self.recipe == "ese" and len(self.dims) != 1:
            raise UsageError(f"elastic.dims is {list(self.dims)}; ese compresses to one: give a list of one number.")
        if self.recipe == "matryoshka" and self.layers:
            raise UsageError(
                f"elastic.layers is {list(self.layers)}; matryoshka cuts dimensions alone: leave layers out."
            )
        if self.weights and (self.recipe != "matryoshka" or len(self.weights) != len(self.dims)):
            raise UsageError(
                f"elastic.weights is {list(self.weights)}; expected, for matryoshka alone, one for each of dims."
            )


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov & Hutter 2019); biases and norms are not decayed."""

    lr: float = 2e-5
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip: float | None = 1.0  # the most that the gradient's norm may be; null: any


@dataclass(frozen=True)
class Evaluation:
    """What is scored on the way. Never a test split that is reported later."""

    task: str  # BEIR folder, file, or a task of mteb
    metric: str  # "ndcg@10", "spearman", ...
    split: str = "dev"
    every: int = 100  # steps
    patience: int | None = None  # stop after so many evaluations without a better score


MANY = 1_000_000_000  # steps, examples, tokens
NUMBERS: Mapping[str, tuple[float, float]] = {  # setting of a stage -> the least and the most, where it is given
    "steps": (1, MANY),
    "max_tokens": (1, MANY),
    "checkpoint_every": (1, MANY),
    "data.weight": (1e-9, MANY),
    "data.limit": (1, MANY),
    "loss.weight": (0, 1_000_000),
    "loss.temperature": (1e-4, 10_000),
    "loss.teacher_temperature": (1e-4, 10_000),
    "loss.scale": (1e-4, 10_000),
    "loss.focal_gamma": (0, 100),
    "loss.margin": (-1000, 1000),
    "batch.size": (2, 131_072),
    "batch.ratio": (0, 1),
    "batch.negatives": (0, 10_000),
    "batch.tokens": (1, MANY),
    "elastic.dims": (1, 1_000_000),
    "elastic.weights": (0, 1_000_000),
    "elastic.layers": (1, 10_000),
    "elastic.layers_per_step": (1, 1000),
    "optimizer.lr": (1e-12, 10),
    "optimizer.weight_decay": (0, 100),
    "optimizer.warmup": (0, 1),
    "optimizer.clip": (1e-6, 1_000_000),
    "evaluation.every": (1, MANY),
    "evaluation.patience": (1, MANY),
}
MEANING = {
    "optimizer.warmup": ", a share of the steps and no number of steps",
    "optimizer.clip": ", or null for no clipping",
}
SEEDS = 2**32
SECRET = 8  # characters at least; shorter values may be words of a sentence


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer over one mixture."""

    data: tuple[Data, ...]
    loss: tuple[Loss, ...]
    steps: int
    name: str = "train"
    batch: Batch = Batch()
    elastic: Elastic | None = None
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation | None = None
    leaks: tuple[str, ...] = ()  # evaluation sets; training texts found there are left out
    max_tokens: int | None = None
    dropout: bool = True  # the model's own, or none
    checkpoint_every: int = 200  # steps

    def __post_init__(self) -> None:
        if not self.data or not self.loss:
            raise UsageError(
                f"The stage {shown(self.name)} has no {'loss' if self.data else 'data'}; give at least one."
            )
        if not any(term.weight for term in self.loss):
            raise UsageError(f"Every loss of the stage {shown(self.name)} has the weight 0; give one above it.")
        cuts = self.elastic is not None and (self.elastic.dims or self.elastic.recipe != "embedkit")
        if cuts and all(term.name == "embedding_distillation" for term in self.loss):
            raise UsageError(
                f"The stage {shown(self.name)} cuts rows, and embedding_distillation, its only loss, is of whole ones; add another loss, "
                f"such as in_batch_distillation, or leave elastic.dims out."
            )
        for key, (least, most) in NUMBERS.items():
            for where, value in _numbers(self, key):
                if not least <= value <= most:
                    raise UsageError(
                        f"{where} is {shown(value)} in the stage {shown(self.name)}; expected {least:,} to {most:,}{MEANING.get(key, '')}."
                    )


def _numbers(part: Any, key: str, where: str = "") -> Iterator[tuple[str, float]]:
    """("data.0.weight", 2.0) for each number that a setting such as data.weight has; none where it is left out."""
    if isinstance(part, tuple):
        for place, one in enumerate(part):
            yield from _numbers(one, key, f"{where}.{place}")
    elif key and part is not None:
        name, _, rest = key.partition(".")
        yield from _numbers(getattr(part, name), rest, f"{where}.{name}" if where else name)
    elif part is not None:
        yield where, part


@dataclass(frozen=True)
class TrainingRecipe:
    """A whole recipe. stages run in order, each on the model that the one before made."""

    model: str
    stages: tuple[Stage, ...]
    seed: int = 0
    # of the transformer's products, weights stay float32; auto: bfloat16 where the device multiplies it faster
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed is {shown(self.seed)}; expected 0 to {SEEDS - 1:,}.")
        names = [stage.name for stage in self.stages]
        if not names:
            raise UsageError(
                "stages is an empty list; give at least one stage, or leave it out where there is only one."
            )
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise UsageError(
                f"Two stages have the name {shown(twice[0])}, by which the log tells them apart; rename one."
            )

    @property
    def resolved(self) -> dict[str, Any]:
        """As nested mappings, every default written out."""
        return asdict(self)

    @property
    def hash(self) -> str:
        return digest(self.resolved)


def read_training_recipe(name: str, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """A recipe by name or file. Settings of a stage may stand at the top, for all stages; without `stages` there is one."""
    mapping = read_recipe(find_recipe(name, "train"), overrides)
    own = set(TrainingRecipe.__dataclass_fields__) - {"stages"}
    shared = {key: value for key, value in mapping.items() if key not in own | {"stages"}}
    stages = mapping.get("stages", [{}])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise UsageError("stages is no list of mappings; write one '- name: ...' a stage.")
    named = "stages" in mapping
    names = [{"name": f"train {number}"} if len(stages) > 1 else {} for number in range(1, len(stages) + 1)]
    filled = [
        fill(Stage, {**name, **merged(shared, one)}, f"stages.{place}" if named else "")
        for place, (name, one) in enumerate(zip(names, stages, strict=True))
    ]
    return fill(TrainingRecipe, {**{key: mapping[key] for key in own & set(mapping)}, "stages": filled})


@contextmanager
def from_environment(written: str) -> Iterator[str]:
    """A path with $NAME taken from the environment; the errors inside name it as it is written, since a value may be a secret.

    Raises UsageError for a name that is not set.
    """
    names = re.findall(r"\$\{?(\w+)", written)
    if missing := [name for name in names if name not in os.environ]:
        raise UsageError(
            f"{written} is named in the recipe and ${missing[0]} is not set; set it, or override the path."
        )
    path = os.path.expandvars(written)

    def hidden(message: object) -> str:
        text = str(message)
        for value, name in [(path, written), *((os.environ[name], f"${name}") for name in names)]:
            if names and len(value) >= SECRET:
                text = text.replace(value, name).replace(str(Path(value)), name)
        return text

    try:
        yield path
    except EmbedkitError as error:
        error.args = (hidden(error),)
        raise
    except OSError as error:
        if error.filename is not None:
            error.filename = hidden(error.filename)
        raise


def grid_of(elastic: Elastic, width: int, depth: int) -> Grid:
    """The cells that a model of this width and depth is trained for. Raises UsageError where it does not have them.

    2DMSE, where nothing is said: all layers, and the dims 8, 16, 32, ... below the width (Li et al. 2024, arXiv 2402.14776 v1).
    """
    dims, layers = elastic.dims, elastic.layers
    if elastic.recipe.startswith("2dmse"):
        dims = dims or tuple(8 << place for place in range(width.bit_length()) if 8 << place < width)
        layers = layers or tuple(range(1, depth))
    for name, values, most in (("dims", dims, width), ("layers", layers, depth)):
        if not all(1 <= value <= most for value in values):
            raise UsageError(f"elastic.{name} is {list(values)}; the model has {most}: choose from 1 to {most}.")
        if elastic.recipe.startswith("2dmse") and not any(value < most for value in values):
            raise UsageError(
                f"elastic.{name} is {list(values)}; {elastic.recipe} draws from those below {most}: give some."
            )
    if elastic.recipe == "ese":
        layers = tuple(range(1, depth - 1))  # ESE leaves the last but one out
    trained = tuple(sorted({*dims, width}))
    return Grid(tuple(sorted({*layers, depth})), trained, dims if elastic.recipe == "ese" else trained)
