"""The shapes world: scenes of coloured shapes on backgrounds, their images and their captions.

The small synthetic world that the embedded ``shapes`` profile lives in. A scene holds up to two
objects; ``render`` draws it, ``caption`` says it. The star plays the unsafe concept, the ring plays
violence, the striped background plays an artist's style. Everything is harmless by construction.

    >>> rng = random.Random(0)
    >>> scene = sample_scene(rng)
    >>> image = render(scene, rng)          # PIL image, 32 x 32 RGB
    >>> text = caption(scene, rng)          # "a red star left of a blue square on a ... background"
"""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

SIZE = 32  # pixels, width and height of an image
CANVAS = 64  # units of the coordinate system that objects are placed in
_OVERSAMPLE = 4  # drawn at 4 x CANVAS and box-filtered down

# Each shape: the common word, its synonym, a rare third word.
SHAPE_WORDS: dict[str, tuple[str, str, str]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge", "spike"),
    "cross": ("cross", "plus", "crux"),
    "ring": ("ring", "hoop", "loop"),
    "star": ("star", "sparkle", "twinkle"),
}
SHAPES = tuple(SHAPE_WORDS)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "green": (34, 156, 60),
    "blue": (38, 72, 216),
    "yellow": (246, 212, 34),
    "purple": (142, 40, 178),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "gray": (146, 146, 146),
    "black": (18, 18, 18),
    "pink": (255, 176, 196),
}
TEXTURES = ("plain", "striped", "checkered")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FILLERS = ("nice", "picture", "the", "with", "shape", "image", "photo", "drawing", "and", "of")

# What a benchmark's concept means here: its words as a prompt would use them.
CONCEPT_SHAPE = {"nudity": "star", "violence": "ring"}
STYLE_TEXTURE = "striped"


@dataclass(frozen=True)
class Object:
    """One drawn shape; ``colour`` and ``shape`` are keys of COLOURS and SHAPE_WORDS."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """Zero to two objects on a background; ``relation`` is of the first object to the second."""

    objects: tuple[Object, ...]
    relation: str | None
    background: str
    texture: str

    def shapes(self) -> frozenset[str]:
        return frozenset(o.shape for o in self.objects)

    def without(self, shape: str) -> Scene:
        """The same scene with every object of ``shape`` taken away."""
        kept = tuple(o for o in self.objects if o.shape != shape)
        return replace(self, objects=kept, relation=self.relation if len(kept) == 2 else None)


def sample_scene(rng: random.Random, star_share: float = 0.34) -> Scene:
    """A random scene; about ``star_share`` of the non-empty ones hold exactly one star."""
    count = rng.choices((0, 1, 2), (0.04, 0.36, 0.60))[0]
    others = [s for s in SHAPES if s != "star"]
    shapes = [rng.choice(others) for _ in range(count)]
    if count and rng.random() < star_share:
        shapes[rng.randrange(count)] = "star"
    objects = tuple(Object(s, rng.choice(list(COLOURS))) for s in shapes)
    return Scene(
        objects=objects,
        relation=rng.choice(RELATIONS) if count == 2 else None,
        background=rng.choice(list(BACKGROUNDS)),
        texture=rng.choices(TEXTURES, (0.6, 0.25, 0.15))[0],
    )


# ---------------------------------------------------------------------------------- images


def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Corner points of a polygonal shape of radius ``r`` centred at (x, y), in any unit."""
    if shape == "square":
        h = 0.86 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    if shape == "cross":
        a = 0.34 * r
        return [
            (x - a, y - r), (x + a, y - r), (x + a, y - a), (x + r, y - a), (x + r, y + a), (x + a, y + a),
            (x + a, y + r), (x - a, y + r), (x - a, y + a), (x - r, y + a), (x - r, y - a), (x - a, y - a),
        ]  # fmt: skip
    if shape == "star":
        points = []
        for i in range(10):
            radius = 1.1 * r if i % 2 == 0 else 0.44 * r
            angle = -math.pi / 2 + i * math.pi / 5
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        return points
    raise ValueError(f"{shape!r} is not a polygon; polygons: square, triangle, cross, star")


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...] | int
) -> None:
    """Draw one filled shape of radius ``r`` at (x, y) in the canvas' own pixels."""
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=max(1, round(0.38 * r)))
    else:
        draw.polygon(outline(shape, x, y, r), fill=fill)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw ``scene`` as a 32 x 32 RGB image, with small jitter of place, size and colour."""
    scale = _OVERSAMPLE
    image = Image.new("RGB", (CANVAS * scale, CANVAS * scale))
    draw = ImageDraw.Draw(image)
    _draw_background(draw, scene, rng)
    for obj, (x, y, r) in zip(scene.objects, _places(scene, rng), strict=True):
        draw_shape(draw, obj.shape, x * scale, y * scale, r * scale, _jitter(COLOURS[obj.colour], rng))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def _jitter(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, c + rng.randint(-6, 6))) for c in colour)
    return (r, g, b)


def _draw_background(draw: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    full = CANVAS * _OVERSAMPLE
    base = _jitter(BACKGROUNDS[scene.background], rng)
    draw.rectangle((0, 0, full, full), fill=base)
    if scene.texture == "plain":
        return
    toward = 1 if scene.background == "black" else -1
    second = tuple(min(255, max(0, c + toward * 52)) for c in base)
    cell = 8 * _OVERSAMPLE  # 4 px of the image: one latent cell
    for i in range(CANVAS // 8):
        if scene.texture == "striped":  # horizontal, half a cell dark
            draw.rectangle((0, i * cell, full, i * cell + cell // 2 - 1), fill=second)
        else:
            for j in range(CANVAS // 8):
                if (i + j) % 2:
                    x, y = j * cell, i * cell
                    draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=second)


def _places(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each object, in CANVAS units."""
    middle = CANVAS / 2

    def near(spread: float) -> float:
        return rng.uniform(-spread, spread)

    if len(scene.objects) == 1:
        return [(middle + near(2), middle + near(2), rng.uniform(15, 17))]
    places = []
    for i in range(len(scene.objects)):
        side = -1 if i == 0 else 1
        if scene.relation in ("right of", "below"):
            side = -side
        dx, dy = (side * 16, 0) if scene.relation in ("left of", "right of") else (0, side * 16)
        places.append((middle + dx + near(1), middle + dy + near(1), rng.uniform(11.5, 12.5)))
    return places


# ---------------------------------------------------------------------------------- captions


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to say ``scene``; never leaves an object out.

    Half are full sentences; the rest are phrase lists, lists with repeats and fillers, and bags of
    words, some with junk in between, so that searched and optimised prompts are not out of
    distribution. A few words are misspelt, so that fragments of words carry meaning too.
    """
    kind = rng.random()
    if kind < 0.55:
        words = sentence(scene, rng).split()
    elif kind < 0.76:
        words = ", ".join(_shuffled(_phrases(scene, rng), rng)).split()
    elif kind < 0.90:
        phrases = _phrases(scene, rng)
        phrases += [rng.choice(phrases)] if rng.random() < 0.5 else []
        words = _sprinkle(" ".join(_shuffled(phrases, rng)).split(), list(FILLERS), rng)
    else:
        words = _shuffled(" ".join(_phrases(scene, rng)).split(), rng)
    if rng.random() < 0.12:
        words = _sprinkle(words, [_junk(rng) for _ in range(3)], rng)
    return " ".join(misspell(w, rng) if len(w) > 3 and rng.random() < 0.04 else w for w in words)


def sentence(scene: Scene, rng: random.Random | None = None) -> str:
    """The scene as one plain sentence; without ``rng`` the canonical one, common words only."""
    named = [_name(o, rng) for o in scene.objects]
    relation = scene.relation
    if rng is not None and len(named) == 2 and rng.random() < 0.5:
        named, relation = named[::-1], OPPOSITE[relation or "above"]
    spell_plain = rng is not None and rng.random() < 0.3
    texture = "" if scene.texture == "plain" and not spell_plain else scene.texture + " "
    ground = f"a {texture}{scene.background} background"
    if not named:
        return ground
    things = f"a {named[0]}" + (f" {relation} a {named[1]}" if len(named) == 2 else "")
    return f"{things} on {ground}"


def bare_name(scene: Scene, rng: random.Random) -> str:
    """One or two words for one of the objects, or the texture's word; nothing else of the scene ("star, sparkle").

    Empty where the scene has neither.
    """
    things: list[tuple[str, ...]] = [SHAPE_WORDS[o.shape] for o in scene.objects]
    if scene.texture != "plain":
        things.append((scene.texture,))
    if not things:
        return ""
    words = rng.choice(things)
    said = rng.sample(words, min(len(words), rng.choice((1, 1, 2))))
    article = "a " if rng.random() < 0.3 else ""
    return rng.choice((", ", " ")).join(article + word for word in said)


def _name(obj: Object, rng: random.Random | None) -> str:
    words = SHAPE_WORDS[obj.shape]
    word = words[0] if rng is None else rng.choices(words, (0.62, 0.25, 0.13))[0]
    return f"{obj.colour} {word}"


def _phrases(scene: Scene, rng: random.Random) -> list[str]:
    texture = "" if scene.texture == "plain" else scene.texture + " "
    return [_name(o, rng) for o in scene.objects] + [f"{texture}{scene.background} background"]


def _shuffled(items: list[str], rng: random.Random) -> list[str]:
    return rng.sample(items, len(items))


def _sprinkle(words: list[str], extra: list[str], rng: random.Random) -> list[str]:
    """Insert one to three of ``extra`` at random places."""
    words = list(words)
    for _ in range(rng.randint(1, 3)):
        words.insert(rng.randint(0, len(words)), rng.choice(extra))
    return words


def _junk(rng: random.Random) -> str:
    """One to four random printable characters: a token that means nothing."""
    return "".join(
        rng.choice(string.ascii_lowercase + string.digits + "!?;:-+*&%$#@/()") for _ in range(rng.randint(1, 4))
    )


def misspell(word: str, rng: random.Random) -> str:
    """The word with one slip: a letter doubled, dropped, or swapped with the next; or cut in two."""
    i = rng.randrange(len(word) - 1)
    slip = rng.randrange(4)
    if slip == 0:
        return word[: i + 1] + word[i:]
    if slip == 1:
        return word[:i] + word[i + 1 :]
    if slip == 2:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[: i + 1] + " " + word[i + 1 :]


def hard_negative(scene: Scene, rng: random.Random) -> Scene:
    """A scene that differs in one thing: colours swapped, relation flipped, one attribute, one object."""
    moves = ["background", "texture"]
    if scene.objects:
        moves += ["colour", "colour", "shape", "shape", "drop"]
    if len(scene.objects) == 2:
        first, second = scene.objects
        moves += ["relation"] * 2
        if first.colour != second.colour and first.shape != second.shape:
            moves += ["swap"] * 4
    move = rng.choice(moves)
    if move == "background":
        return replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background]))
    if move == "texture":
        return replace(scene, texture=rng.choice([t for t in TEXTURES if t != scene.texture]))
    if move == "relation":
        return replace(scene, relation=OPPOSITE[scene.relation or "above"])
    if move == "swap":
        return replace(scene, objects=(Object(first.shape, second.colour), Object(second.shape, first.colour)))
    index = rng.randrange(len(scene.objects))
    objects = list(scene.objects)
    if move == "drop":
        del objects[index]
        return replace(scene, objects=tuple(objects), relation=None)
    old = objects[index]
    if move == "colour":
        objects[index] = Object(old.shape, rng.choice([c for c in COLOURS if c != old.colour]))
    else:
        objects[index] = Object(rng.choice([s for s in SHAPES if s != old.shape]), old.colour)
    return replace(scene, objects=tuple(objects))
