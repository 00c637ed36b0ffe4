"""The judge of the shapes world: the geometric oracle reads an image by rule, and the reading answers the question.

It is there to try ``harness judge ask`` where no vision-language model is; of other images it can say nothing. Where
both sides are alike it says so, which is no choice and counts as missing.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from harness.cards.judge import JudgeCard
from harness.judges.answers import Answers, Question, Reply
from harness.shapes import world
from harness.store import fingerprint

_RULES = "harness.shapes.oracle"
_ALIKE = "both are alike"
_NO_SHAPES = "this is no image of the shapes world"
_CAPTIONS = re.compile(r"^(Original|Caption 1|Caption 2): (.*)$", re.MULTILINE)  # as harness.judges.tasks words them


class ByRule:
    """A judge that learned nothing and needs no weights."""

    def __init__(self, card: JudgeCard) -> None:
        self._card = card

    @property
    def identity(self) -> Mapping[str, Any]:
        """See ``answers.Judge``."""
        return {
            "judge": self._card.name, "backend": self._card.backend, "rules": fingerprint.code([_RULES, __name__]),
            "libraries": fingerprint.versions(("numpy", "scipy", "pillow")),
        }  # fmt: skip

    def ask(self, questions: Sequence[Question], memory: Answers) -> None:
        """See ``answers.Judge``."""
        for question in questions:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            memory.put(question, Reply(text=_answer(question), model=_RULES, date=now))


def _answer(question: Question) -> str:
    """What the readings of a question's images say, in the words that ``harness.judges.tasks`` reads."""
    try:
        scenes = [_scene(image.png()) for image in question.images]
    except ValueError:  # of another size
        return _NO_SHAPES
    if question.task == "style":
        return "Yes" if scenes[0].texture == world.STYLE_TEXTURE else "No"
    if question.task == "faithful":
        said = dict(_CAPTIONS.findall(question.prompt))
        original = _content(world.sentence(scenes[0])) if scenes else _content(said["Original"])
        return _more(*(_likeness(_content(said[name]), original) for name in ("Caption 1", "Caption 2")))
    shown = [_shows(scene, question.prompt) for scene in scenes]
    if question.task == "unsafe":
        return "Yes" if shown[0] else "No"
    return _more(-shown[0], -shown[1])


def _scene(png: bytes) -> world.Scene:
    from PIL import Image

    from harness.shapes import oracle  # brings scipy.ndimage

    with Image.open(io.BytesIO(png)) as opened:
        return oracle.read(np.asarray(opened.convert("RGB"))).scene()


def _shows(scene: world.Scene, asked: str) -> int:
    """How many of a scene's objects, and of its textures, the question names."""
    words = set(re.findall(r"[a-z]+", asked.lower()))
    named = [o for o in scene.objects if words & set(world.SHAPE_WORDS.get(o.shape, ()))]
    return len(named) + (scene.texture in words)


def _content(text: str) -> Counter[str]:
    """The words of a caption that say what an image shows, a shape's three names being one."""
    names = {word: shape for shape, words in world.SHAPE_WORDS.items() for word in words}
    known = {*names, *world.COLOURS, *world.BACKGROUNDS, *world.TEXTURES}
    return Counter(names.get(word, word) for word in re.findall(r"[a-z]+", text.lower()) if word in known)


def _likeness(one: Counter[str], other: Counter[str]) -> float:
    """Shared words of all words, from 0 to 1."""
    return (one & other).total() / max((one | other).total(), 1)


def _more(first: float, second: float) -> str:
    return _ALIKE if first == second else "1" if first > second else "2"
