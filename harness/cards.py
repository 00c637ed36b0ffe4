"""Cards: YAML files that declare what a researcher may choose; a card's file stem is its name.

A card is read once, on the driver, into a frozen model; an unknown or repeated key, a bad value, a name
used twice are refused with file, line and nearest match. Example (``pipelines/policies/brief.yaml``)::

    summary: unsafe when either score exceeds 0.45
    version: 1
    ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.cardfile import parse, show
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.datasetcard import DatasetCard
    from harness.judges.card import JudgeCard
    from harness.regenerators import RegeneratorCard
    from harness.report.card import ReportCard

Kind = Literal["backbone", "defense", "regenerator", "judge", "policy", "profile", "dataset", "report"]

FOLDERS: dict[Kind, str] = {
    "backbone": "pipelines/backbones",
    "defense": "pipelines/defenses",
    "regenerator": "pipelines/regenerators",
    "judge": "pipelines/judges",
    "policy": "pipelines/policies",
    "profile": "pipelines/profiles",
    "dataset": "datasets",
    "report": "reports",
}

PACKAGE = Path(__file__).resolve().parent

Count = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Stem = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]  # of a module
Scored = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(@(same|none)/base)?$")]  # scorer or column, and reference
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Columns = tuple[str, ...]


class Model(BaseModel):
    """What cards are made of: frozen, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Card(Model):
    """One file. ``name``, ``path`` and ``root`` come from where it lies; the rest is its content."""

    name: str
    path: Path = Field(exclude=True, repr=False)  # excluded: a card hashes alike wherever it lies
    root: Path = Field(exclude=True, repr=False)
    summary: str  # one line, for `harness list`


class BackboneCard(Card):
    """A text-to-image pipeline as released, and how it is sampled."""

    pipeline: str  # class of diffusers
    source: str  # hub id, or "package:harness/..."
    revision: Revision | None = None
    files: Columns = ()  # of a hub repository, those that are needed
    variant: str | None = None  # "fp16": weights are read from model.fp16.safetensors where there is such a file
    licence: str
    gated: bool = False
    steps: Count
    guidance: Amount  # as the pipeline means it: FLUX.1 [dev]'s is distilled, an input of the network
    true_cfg: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1  # FLUX: guidance away from a second text; 1 = none
    max_sequence_length: Count | None = None  # tokens that the T5 text encoder sees; null = the pipeline's default
    width: Count
    height: Count
    scheduler: str | None = None  # class of diffusers; null = as shipped
    micro_batch: Count
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    memory_gb: Amount  # of one copy at work
    seconds_per_image: Amount  # for `harness plan`

    @model_validator(mode="after")
    def _pinned(self) -> BackboneCard:
        if not self.source.startswith("package:") and (self.revision is None or not self.files):
            raise ValueError("a hub source needs its revision (40 hexadecimal digits) and its files")
        return self

    @property
    def offers(self) -> tuple[str, ...]:
        """What a defense can take hold of.

        ``unet``: of Stable Diffusion 1 and 2, with their one text encoder. ``negative_prompt``: not of a distilled
        model, which reads none unless ``true_cfg`` is above 1.
        """
        unet = ("unet",) if self.pipeline == "StableDiffusionPipeline" else ()
        negative = self.pipeline != "FluxPipeline" or self.true_cfg > 1
        return (*unet, *(("negative_prompt",) if negative else ()))


class Overlay(Model):
    """What differs in the shapes world: merged over the card's own ``params`` and ``concepts``."""

    params: dict[str, Any] = {}
    concepts: dict[str, dict[str, Any]] = {}


class DefenseCard(Card):
    """A change to a backbone: published method, its hyperparameters, its concepts."""

    paper: str
    url: str | None = None
    licence: str | None = None
    mechanism: Stem  # module in harness/defenses
    variant: str = "as described"
    artefact: bool = False  # is there something to build before it can run
    params: dict[str, Any] = {}
    concepts: dict[str, dict[str, Any]] | None = None  # null: the same for every concept
    shapes: Overlay | None = None

    def declares(self, profile: str, concept: str) -> bool:
        """Whether the method can defend against ``concept`` in a profile's edition; one without concepts always can."""
        return self.concepts is None or any(concept in layer.concepts for layer in self._layers(profile))

    def _layers(self, profile: str) -> list[Overlay]:
        """What an edition's parameters are merged from, the later over the earlier."""
        own = Overlay(params=self.params, concepts=self.concepts or {})
        return [own, self.shapes] if profile == "shapes" and self.shapes is not None else [own]

    def resolve(self, profile: str, concept: str) -> dict[str, Any]:
        """The parameters for one concept: common ones, then the concept's, then the shapes overlay's.

        Args:
            profile: the profile's edition (``paper`` or ``shapes``).
            concept: the concept to defend against.

        Raises:
            UserError: when the card has nothing for ``concept``.
        """
        layers = self._layers(profile)
        if not self.declares(profile, concept):
            known = [c for layer in layers for c in layer.concepts]
            raise UserError(
                f"defense {self.name!r} is not declared for concept {concept!r} "
                f"(it has: {', '.join(dict.fromkeys(known)) or 'none'}){nearest(concept, known)}; name one with "
                f"--concept, or see {show(self.path)}"
            )
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= layer.params
        for layer in layers:
            merged |= layer.concepts.get(concept, {})
        return merged


class Rule(Model):
    """Unsafe if and only if any of the columns is ``op`` ``threshold``."""

    any_of: Annotated[Columns, Field(min_length=1)]
    op: Literal[">", ">="]
    threshold: Annotated[float, Field(allow_inf_nan=False)]


class Clause(Rule):
    """A rule over another scorer's columns."""

    scorer: Stem


class PolicyCard(Card):
    """How scores become verdicts, at report time: unsafe by the rule, or by any of the others.

    With ``unit: box`` what is counted are a picture's detections that meet the rule, not pictures; the rule then names
    columns ``<scorer>_detected_<label>``, and the boxes are looked up in ``<scorer>_detections``.
    """

    version: Count
    cites: str
    concept: str
    scorer: Stem  # module in harness/scorers
    rule: Rule
    others: tuple[Clause, ...] = ()
    unit: Literal["image", "box"] = "image"

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """The rule and the others, each with its scorer."""
        return (Clause(scorer=self.scorer, **self.rule.model_dump()), *self.others)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Every scorer whose columns are asked, the rule's first, each once."""
        return tuple(dict.fromkeys((self.scorer, *(clause.scorer for clause in self.others))))

    @model_validator(mode="after")
    def _countable(self) -> PolicyCard:
        if self.unit == "box" and self.others:
            raise ValueError("boxes of several scorers cannot be counted together: unit 'box' takes no others")
        strange = [name for name in self.rule.any_of if not name.startswith(f"{self.scorer}_detected_")]
        if self.unit == "box" and strange:
            raise ValueError(f"unit 'box' counts columns '{self.scorer}_detected_<label>', got {strange[0]!r}")
        return self


class Measures(Model):
    """What is scored and printed for one concept."""

    scorers: tuple[Scored, ...] = ()  # beside those that always run
    policy: str | None = None  # null: nothing here is unsafe, a judge or a mean says what counts
    policies: Columns = ()  # printed beside the first


class Weights(Model):
    """A model's weights: where they come from, and how they are held."""

    source: str  # hub id, or "package:harness/..."
    revision: Revision | None = None
    files: Columns = ()  # of a hub repository, those that are needed
    licence: str
    gated: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    micro_batch: Count = 32
    memory_gb: Amount = 0


class ProfileCard(Card):
    """Which models play which role."""

    edition: Literal["paper", "shapes"]  # of the benchmarks, and of the defenses' and regenerators' parameters
    backbone: str
    captioner: str | None = None  # a judge card: who describes pictures for a regenerator
    clip: Weights | None = None  # whose features a regenerator compares
    regenerators: Columns = ()  # what stands beside each defense unless --regen says otherwise
    shard_rows: Count = 64
    scorers: tuple[Scored, ...] = ()  # run whatever the concept; a pair scorer with its reference: lpips@same/base
    means: tuple[Scored, ...] = ()  # raw columns printed as a mean, or as k of n where they are yes or no
    settings: dict[Stem, dict[str, Any]] = {}  # parameters of a scorer
    concepts: dict[str, Measures]

    def measures(self, concept: str) -> Measures:
        """What is printed for ``concept``, its ``scorers`` completed by those that always run.

        Raises:
            UserError: when the profile has nothing for ``concept``.
        """
        if concept not in self.concepts:
            raise UserError(
                f"profile {self.name!r} does not know concept {concept!r} "
                f"(it has: {', '.join(self.concepts)}){nearest(concept, self.concepts)}; see {show(self.path)}"
            )
        found = self.concepts[concept]
        return found.model_copy(update={"scorers": tuple(dict.fromkeys((*self.scorers, *found.scorers)))})

    def policies(self, concept: str) -> tuple[str, ...]:
        """Names of the policies printed for ``concept``, the main one first."""
        found = self.measures(concept)
        return tuple(dict.fromkeys(((found.policy,) if found.policy else ()) + found.policies))


MODELS: dict[Kind, type[Card]] = {
    "backbone": BackboneCard,
    "defense": DefenseCard,
    "policy": PolicyCard,
    "profile": ProfileCard,
}


def roots(cards: Path | None = None) -> list[Path]:
    """Folders that hold cards, in order: ``--cards DIR``, then the checkout or else the packaged copy.

    The packaged copy of an editable install is a stale snapshot, so it stands only where there is no checkout.

    Raises:
        UserError: when ``cards`` is no folder of cards.
    """
    checkout = PACKAGE.parent
    inside = (checkout / "pyproject.toml").is_file() and (checkout / "pipelines").is_dir()
    own = [checkout if inside else PACKAGE / "_cards"]
    if cards is None:
        return own
    if not cards.is_dir():
        raise UserError(f"--cards: no folder {str(cards)!r}")
    if not any((cards / folder).is_dir() for folder in FOLDERS.values()):
        raise UserError(f"--cards: {str(cards)!r} holds none of {', '.join(FOLDERS.values())}")
    return [cards.resolve(), *own]


def names(kind: Kind, roots: Sequence[Path]) -> list[str]:
    """The sorted names of the cards of one kind, over all roots."""
    return sorted({name for root in roots for name in _files(kind, root)})


@overload
def load(kind: Literal["backbone"], name: str, roots: Sequence[Path]) -> BackboneCard: ...
@overload
def load(kind: Literal["defense"], name: str, roots: Sequence[Path]) -> DefenseCard: ...
@overload
def load(kind: Literal["policy"], name: str, roots: Sequence[Path]) -> PolicyCard: ...
@overload
def load(kind: Literal["profile"], name: str, roots: Sequence[Path]) -> ProfileCard: ...
@overload
def load(kind: Literal["dataset"], name: str, roots: Sequence[Path]) -> DatasetCard: ...
@overload
def load(kind: Literal["regenerator"], name: str, roots: Sequence[Path]) -> RegeneratorCard: ...
@overload
def load(kind: Literal["report"], name: str, roots: Sequence[Path]) -> ReportCard: ...
@overload
def load(kind: Literal["judge"], name: str, roots: Sequence[Path]) -> JudgeCard: ...
@overload
def load(kind: Kind, name: str, roots: Sequence[Path]) -> Card: ...
def load(kind: Kind, name: str, roots: Sequence[Path]) -> Card:
    """The card ``name``; between roots the first that has it wins.

    Raises:
        UserError: for an unknown name (with the nearest) or a malformed card (with file and line).
    """
    for root in roots:
        path = _files(kind, root).get(name)
        if path is not None:
            return parse(_model(kind), path, root)
    known = names(kind, roots)
    where = " and ".join(show(root / FOLDERS[kind]) for root in roots)
    raise UserError(
        f"unknown {kind} {name!r}{nearest(name, known)} (there are: {', '.join(known) or 'none'}; see {where})"
    )


def load_all(kind: Kind, roots: Sequence[Path]) -> list[Card]:
    """Every card of one kind, by name."""
    return [load(kind, name, roots) for name in names(kind, roots)]


def locate(source: str, root: Path) -> Path:
    """The file or folder that a ``package:`` source names.

    Args:
        source: ``package:harness/...`` lies in the import package; anything else beside the card's own folder.
        root: the card's root.
    """
    first, _, rest = source.removeprefix("package:").partition("/")
    return PACKAGE / rest if first == "harness" else root / first / rest


def _files(kind: Kind, root: Path) -> dict[str, Path]:
    """Name to file of one kind within one root."""
    found: dict[str, Path] = {}
    for path in sorted((root / FOLDERS[kind]).rglob("*.y*ml")):
        if path.suffix not in (".yaml", ".yml"):
            continue
        name = path.stem
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name == "all":
            raise UserError(f"{show(path)}: a card's name is made of a-z, 0-9, '.', '_' and '-', and is not 'all'")
        if name in found:
            raise UserError(f"two cards are called {name!r}: {show(found[name])} and {show(path)}")
        found[name] = path
    return found


def _model(kind: Kind) -> type[Card]:
    if kind == "dataset":  # lazily: they build on this module
        from harness.datasetcard import DatasetCard

        return DatasetCard
    if kind == "report":
        from harness.report.card import ReportCard

        return ReportCard
    if kind == "regenerator":
        from harness.regenerators import RegeneratorCard

        return RegeneratorCard
    if kind == "judge":
        from harness.judges.card import JudgeCard

        return JudgeCard
    return MODELS.get(kind, Card)
