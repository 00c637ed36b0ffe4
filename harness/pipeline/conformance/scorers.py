"""The contract of a scorer, tried on drawn scenes of the shapes world and on images that show nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import scorers
from harness.errors import UserError
from harness.pipeline.conformance.rules import NotApplicableError, Rule, stated, stirred
from harness.pipeline.stages.attempts import Bisection
from harness.pipeline.stages.images import encode
from harness.pipeline.stages.score import Score
from harness.shapes import world
from harness.store.schema import IMAGE

Image = NDArray[np.uint8]
Scores = dict[str, list[Any]]  # by column, a value for each image

_SCENES = 5
_REFERENCES = scorers.REFERENCES[0]


@cache
def scenes() -> tuple[tuple[Image, str], ...]:
    """Images of the shapes world and what each shows, the same at every call."""
    chance = random.Random(7)
    drawn = [world.sample_scene(chance) for _ in range(2 * _SCENES)]
    return tuple((np.asarray(world.render(scene, chance)), world.sentence(scene)) for scene in drawn)


def blanks() -> dict[str, Image]:
    """Images that show nothing, or are of an odd size."""
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sizes = {"black": (32, 32), "of one pixel": (1, 1), "of one row": (1, 300), "large": (300, 200)}
    made: dict[str, Image] = {name: np.zeros((*size, 3), np.uint8) for name, size in sizes.items()}
    return {**made, "white": np.full((32, 32, 3), 255, np.uint8), "noise": noise}


def not_images() -> dict[str, Any]:
    """Arrays that are no (height, width, 3) uint8 image."""
    return {
        "grey": np.zeros((32, 32), np.uint8), "transparent": np.zeros((32, 32, 4), np.uint8),
        "of numbers": np.zeros((32, 32, 3), np.float32), "empty": np.zeros((0, 32, 3), np.uint8),
    }  # fmt: skip


@dataclass
class ScorerSubject:
    """A scorer on trial."""

    stem: str
    params: Mapping[str, Any] = field(default_factory=dict)
    _used: scorers.Scorer | None = None

    def renew(self) -> None:
        """What one rule leaves behind in a scorer, another may meet: the rule about it loads the scorer anew."""

    def loaded(self) -> scorers.Scorer:
        """The scorer, loaded anew."""
        return scorers.load(self.stem, self.params)

    @property
    def used(self) -> scorers.Scorer:
        """The scorer that most rules share, since large ones take long to load."""
        if self._used is None:
            self._used = self.loaded()
        return self._used

    def scores(self, images: Sequence[Image], scorer: scorers.Scorer | None = None, skip: Sequence[int] = ()) -> Scores:
        """What it says of images; beside each, where it wants one, a reference or a text, and None at ``skip``."""
        call = scorer or self.used
        others = scenes()[_SCENES : _SCENES + 1] * len(images)
        if scorers.pair(self.stem):
            beside: list[Any] = [_fitting(other, image) for (other, _), image in zip(others, images, strict=True)]
        elif scorers.text(self.stem):
            beside = [text for _, text in others]
        else:
            return call(images)
        return call(images, [None if i in skip else value for i, value in enumerate(beside)])

    @property
    def images(self) -> list[Image]:
        """The scenes that rules score."""
        return [image.copy() for image, _ in scenes()[:_SCENES]]

    @property
    def error(self) -> str:
        return f"{self.stem}_error"


def _fitting(reference: Image, image: Any) -> Image:
    """A reference of the image's size, since a pair scorer may want it so."""
    shape = getattr(image, "shape", ())
    if len(shape) != 3 or shape[:2] == reference.shape[:2] or not image.size:
        return reference
    return np.resize(reference, (*shape[:2], 3))


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or (isinstance(one, float) and isinstance(other, float) and one != one and other != other)


def _apart(first: Scores, second: Scores, told: str) -> str | None:
    """``told`` and which column differs; None where none does."""
    for name, values in first.items():
        for i, (one, other) in enumerate(zip(values, second[name], strict=True)):
            if not _equal(one, other):
                return f"{told}: {name} of image {i} is {other!r}, not {one!r}"
    return None


def _chosen(scores: Scores, places: Sequence[int]) -> Scores:
    return {name: [values[i] for i in places] for name, values in scores.items()}


def columns(subject: ScorerSubject) -> str | None:
    declared, scores = scorers.columns(subject.stem), subject.scores(subject.images)
    odd = [name for name in declared if not name.startswith(f"{subject.stem}_") or name == subject.error]
    if odd or not declared:
        return f"columns are named {subject.stem}_..., and {subject.error} is not declared: {', '.join(odd) or 'none'}"
    if set(scores) != {*declared, subject.error}:
        return f"gives {', '.join(scores)} instead of {', '.join((*declared, subject.error))}"
    for name, kind in declared.items():
        if len(scores[name]) != _SCENES:
            return f"{name} has {len(scores[name])} values for {_SCENES} images"
        pa.array(scores[name], kind)  # refuses what the column cannot hold
    if any(code is not None for code in scores[subject.error]):
        return f"has no score of a scene of the shapes world: {next(c for c in scores[subject.error] if c)}"
    return None


def parameters(subject: ScorerSubject) -> str | None:
    for use in (scorers.weights, scorers.load):
        try:
            use(subject.stem, {**subject.params, "no_such_parameter": 1})
        except UserError:
            continue
        return "takes a parameter called 'no_such_parameter'"
    return None


def determinism(subject: ScorerSubject) -> str | None:
    images = subject.images
    with stirred(1):
        scorer = subject.loaded()
        first = subject.scores(images, scorer)
    with stirred(2):
        again = subject.scores(images, scorer)
        anew = subject.scores(images, subject.loaded())
    return _apart(first, again, "scored twice") or _apart(first, anew, "scored by the scorer loaded anew")


def memory(subject: ScorerSubject) -> str | None:
    images, scorer = subject.images, subject.loaded()
    half = len(images) // 2
    subject.scores(images[:half], scorer)
    fresh = subject.scores(images[half:], subject.loaded())
    return _apart(fresh, subject.scores(images[half:], scorer), "scored after other images")


def batch_mates(subject: ScorerSubject) -> str | None:
    images, scorer = subject.images, subject.used
    whole = subject.scores(images, scorer)
    order = list(reversed(range(len(images))))
    if wrong := _apart(_chosen(whole, order), subject.scores([images[i] for i in order], scorer), "in another order"):
        return wrong
    for i, image in enumerate(images):
        if wrong := _apart(_chosen(whole, [i]), subject.scores([image], scorer), "by itself"):
            return wrong
    return None


def untouched(subject: ScorerSubject) -> str | None:
    images = subject.images
    subject.scores(images)
    changed = [i for i, (after, before) in enumerate(zip(images, scenes(), strict=False)) if (after != before[0]).any()]
    return f"image {changed[0]} was changed" if changed else None


def degenerate(subject: ScorerSubject) -> str | None:
    """Images that show nothing have scores or codes, no NaN, and cost no other image its scores."""
    images = subject.images[:1]
    expected, scorer = subject.scores(images), subject.used
    for name, blank in blanks().items():
        try:
            scores = subject.scores([*images, blank], scorer)
        except Exception as error:  # a stranger's code may raise anything
            return f"an image that is {name} raises {type(error).__name__}: {error}"
        if wrong := _apart(expected, _chosen(scores, [0]), f"beside an image that is {name}"):
            return wrong
        values = [values[1] for key, values in scores.items() if key != subject.error]
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            return f"an image that is {name} has a score that is no number; what is missing is null"
        if scores[subject.error][1] is None and all(value is None for value in values):
            return f"an image that is {name} has neither a score nor a code in {subject.error}"
    return None


def errors(subject: ScorerSubject) -> str | None:
    images = subject.images[:2]
    expected, scorer = subject.scores(images), subject.used
    for name, odd in not_images().items():
        try:
            scores = subject.scores([images[0], odd, images[1]], scorer)
        except Exception as error:  # a stranger's code may raise anything
            return f"an array that is {name} raises {type(error).__name__}: {error}"
        if wrong := _apart(expected, _chosen(scores, [0, 2]), f"beside an array that is {name}"):
            return wrong
        if not scores[subject.error][1]:
            return f"an array that is {name} has no code in {subject.error}"
    return _undecodable(subject)


def _undecodable(subject: ScorerSubject) -> str | None:
    """In the stage, a row whose image cannot be decoded has a code, and an excluded one nothing."""
    reference = _REFERENCES if scorers.pair(subject.stem) else None
    stage = Score(subject.stem, dict(subject.params), reference)
    rows = _rows(subject.images[:2])
    whole, rest = stage(rows), _rows(subject.images[:2], broken=1)
    search = Bisection(_call(stage), stage.failed, "score", lambda entry: None)
    scored = pa.concat_tables(search([rest])).to_pylist()
    names = [name for name in scored[0] if name.startswith(subject.stem)]
    code = next(name for name in names if name.partition("@")[0] == subject.error)
    if not scored[1][code]:
        return f"an image that cannot be decoded has no code in {code}"
    first = whole.to_pylist()[0]
    differ = [name for name in names if not _equal(first[name], scored[0][name])]
    return f"beside an image that cannot be decoded, {differ[0]} is another" if differ else None


def _call(stage: Score) -> Callable[[pa.Table], pa.Table]:
    return stage.__call__


def _rows(images: Sequence[Image], broken: int | None = None) -> pa.Table:
    """Rows of an image table; the image of the row ``broken`` is none."""
    entries = [
        {
            "row_id": f"conformance/{i:05d}", "sample": 0, "defense": "none", "variant": "base", "prompt": text,
            "image": b"no image" if i == broken else encode(image), "image_sha256": "of a rule",
        }
        for i, (image, (_, text)) in enumerate(zip(images, scenes(), strict=False))
    ]  # fmt: skip
    table = pa.Table.from_pylist(entries, schema=IMAGE)
    reference = [encode(scenes()[_SCENES][0])] * len(images)
    table = table.append_column("reference", pa.array(reference, pa.binary()))
    return table.append_column("reference_sha256", pa.array(["of a rule"] * len(images), pa.string()))


def beside_nothing(subject: ScorerSubject) -> str | None:
    if not scorers.pair(subject.stem) and not scorers.text(subject.stem):
        raise NotApplicableError("it is called with images alone")
    images = subject.images[:2]
    scores, both = subject.scores(images, skip=[1]), subject.scores(images)
    said = [name for name, values in scores.items() if values[1] is not None]
    if said:
        return f"an image without a reference or text has {said[0]} = {scores[said[0]][1]!r}"
    return _apart(_chosen(both, [0]), _chosen(scores, [0]), "beside an image without a reference or text")


RULES: tuple[Rule[ScorerSubject], ...] = (
    Rule("columns", "each image has a value of the declared type in each declared column, or null", columns),
    Rule("parameters", "an unknown parameter is refused as a user's mistake", parameters),
    Rule("untouched", "the images that it is given stay as they are", untouched),
    Rule("determinism", "an image has the same scores again, whatever the process's random generators", determinism),
    Rule("memory", "a score does not depend on the images that were scored before", memory),
    Rule("batch-mates", "a score is the same whatever the batch-mates and the place among them", batch_mates),
    Rule("beside nothing", "an image without a reference or text has null scores and no error", beside_nothing),
    Rule("degenerate", "an image that shows nothing has a score or a code, and costs no other its scores", degenerate),
    Rule("errors", "what is no image has a code, and costs no other its scores", errors),
    stated("detaching", "the backbone is left as it was", "a scorer changes no backbone"),
    stated("zero", "at zero strength nothing changes", "a scorer has no strength"),
    stated("guard", "excluded rows are never drawn", "a scorer draws nothing; excluded rows have no image to score"),
)
