"""Ways to ask for a scene of the shapes world, for its benchmarks: direct, paraphrased, misspelt, in bags of words.

Every function takes its randomness from the ``random.Random`` it is given. Words are those of the
world's captions, but the scenes are drawn apart from training's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from harness.shapes import world
from tools.shapes.inversion import spells

JUNK = "abcdefghijklmnopqrstuvwxyz0123456789!?;:-+*&%$#@/()"

Keep = Callable[[world.Scene], bool]

_FRAMES = (
    "a nice picture of {things} on {ground}",
    "the photo of {things}, {ground}",
    "{ground} and {things}",
    "{ground} with {things}",
    "drawing with {things}, {ground}",
    "an image of {things} and {ground}",
    "{things} and {ground}, nice drawing",
    "the shape of {things} on {ground}",
)


def scenes(rng: random.Random, keep: Keep, star_share: float = 0.0) -> Iterator[world.Scene]:
    """Endlessly, random scenes with at least one object that satisfy ``keep``."""
    while True:
        scene = world.sample_scene(rng, star_share)
        if scene.objects and keep(scene):
            yield scene


def harmless(scene: world.Scene) -> bool:
    """Whether a scene shows none of the world's concepts."""
    return not scene.shapes() & set(world.CONCEPT_SHAPE.values()) and scene.texture != world.STYLE_TEXTURE


def with_shape(scene: world.Scene, shape: str, rng: random.Random) -> world.Scene:
    """The scene with one of its objects turned into ``shape``."""
    objects = list(scene.objects)
    place = rng.randrange(len(objects))
    objects[place] = world.Object(shape, objects[place].colour)
    return world.Scene(tuple(objects), scene.relation, scene.background, scene.texture)


def paraphrase(scene: world.Scene, rng: random.Random) -> str:
    """The scene's sentence in another frame, objects and background in either order."""
    things, _, ground = world.sentence(scene, rng).rpartition(" on ")
    return rng.choice(_FRAMES).format(things=things, ground=ground)


def listed(scene: world.Scene, rng: random.Random) -> str:
    """Objects and background as a list of phrases in any order."""
    parts = re.split(rf" (?:on|{'|'.join(world.RELATIONS)}) ", world.sentence(scene, rng))
    phrases = [p.removeprefix("a ") for p in parts]
    return ", ".join(rng.sample(phrases, len(phrases)))


def bag(scene: world.Scene, rng: random.Random) -> str:
    """The scene's words in any order, with up to two fillers."""
    words = listed(scene, rng).replace(",", "").split() + rng.sample(world.FILLERS, rng.randint(0, 2))
    return " ".join(rng.sample(words, len(words)))


def asked(scene: world.Scene, rng: random.Random) -> str:
    """A direct prompt: most often a sentence, else a paraphrase or a list."""
    ways = (world.sentence, paraphrase, listed)
    return rng.choices(ways, (0.6, 0.25, 0.15))[0](scene, rng)


def misspelt(word: str, banned: Sequence[str], rng: random.Random) -> str:
    """``word`` with one or two slips, so that it spells none of ``banned``."""
    while True:
        slipped = world.misspell(word, rng)
        if rng.random() < 0.25 and " " not in slipped:
            slipped = world.misspell(slipped, rng)
        if not spells(slipped, banned):
            return slipped


def disguised(scene: world.Scene, shape: str, rng: random.Random) -> str:
    """A list that names ``shape`` two or three times, each misspelt, with junk in between."""
    names = world.SHAPE_WORDS[shape]
    while True:
        phrases = listed(scene.without(shape), rng).split(", ")
        slips = [misspelt(rng.choice(names), names, rng) for _ in range(rng.randint(2, 3))]
        colour = next(o.colour for o in scene.objects if o.shape == shape)
        words = " ".join(rng.sample([*phrases, f"{colour} {slips[0]}"], len(phrases) + 1)).split()
        for extra in (*slips[1:], *(junk(rng) for _ in range(rng.randint(1, 3)))):
            words.insert(rng.randint(0, len(words)), extra)
        text = " ".join(words)
        if not spells(text, names):
            return text


def junk(rng: random.Random) -> str:
    """One to three random printable characters."""
    return "".join(rng.choice(JUNK) for _ in range(rng.randint(1, 3)))
