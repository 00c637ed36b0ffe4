"""The geometric oracle: reads an image of the shapes world by rules on its pixels; nothing is learned.

An image is explained in three steps. (1) The background: of the twelve the world has (four colours,
three textures in a fixed phase), the one that leaves the fewest pixels unexplained. (2) The
foreground: how far each pixel lies on the way from its background to a colour of the palette, its
*coverage*; connected pixels of one colour with coverage over a half are an object. (3) The shape:
area and centroid of the coverage give each shape's size and place; the shape whose drawing overlaps
the coverage best is the answer, or ``unknown`` where none overlaps well enough.

Area and centroid survive blur, and the overlap is compared after a slight blur of both sides (two
strengths for the drawing), so the soft edges of a decoder matter little.

    >>> import random
    >>> from harness.shapes import world
    >>> scene = world.Scene((world.Object("star", "red"),), None, "white", "plain")
    >>> has(read(np.asarray(world.render(scene, random.Random(0)))), "star")
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from harness.shapes import world

Array = NDArray[np.float32]

UNKNOWN = "unknown"
MIN_AREA = 14.0  # pixels; the smallest drawn object, a star of a pair, covers 47
MIN_FIT = 0.72  # overlap that names a shape
CLEAR_FIT, CLEAR_LEAD = 0.6, 0.12  # or a fair overlap, this far ahead of the next shape's (blurred rings)
_GREY_WEIGHT = 0.5  # how much of a difference in brightness counts, against one in hue
_OUTLIER = 60.0  # grey levels; farther from a background than this is simply "not background"
_CELL = 4  # pixels, period of the textures
_BLUR = 0.6  # pixels, of the coverage before it is compared
_SOFTNESS = (0.6, 1.1)  # pixels, of the drawings: as sharp as a render, and as soft as a decoder's
_PATCH = 31  # pixels, side of a template
_FINE = 4  # sub-pixel positions and sizes of templates: steps of 1/4 pixel
_OVERSAMPLE = 8


@dataclass(frozen=True)
class Seen:
    """One object as read: ``shape`` is a shape of the world or ``unknown``; lengths in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    fit: float  # overlap with the shape's drawing, in [0, 1]


@dataclass(frozen=True)
class Reading:
    """What an image shows. Two objects stand in reading order: left before right, upper before lower."""

    objects: tuple[Seen, ...]
    relation: str | None
    background: str
    texture: str

    def scene(self) -> world.Scene:
        """The reading as a scene in canonical order (compare with ``canonical(scene)``)."""
        objects = tuple(world.Object(o.shape, o.colour) for o in self.objects)
        return world.Scene(objects, self.relation, self.background, self.texture)


def has(reading: Reading, shape: str) -> bool:
    """Whether an object of ``shape`` (a key of ``world.SHAPE_WORDS``) was read."""
    if shape not in world.SHAPE_WORDS:
        raise ValueError(f"{shape!r} is not a shape; shapes: {', '.join(world.SHAPES)}")
    return any(o.shape == shape for o in reading.objects)


def canonical(scene: world.Scene) -> world.Scene:
    """The same scene told from left to right or from top to bottom."""
    if scene.relation not in ("right of", "below"):
        return scene
    return world.Scene(scene.objects[::-1], world.OPPOSITE[scene.relation], scene.background, scene.texture)


def read(image: NDArray[np.uint8]) -> Reading:
    """Read one image.

    Args:
        image: (32, 32, 3) uint8, RGB.

    Raises:
        ValueError: the array has another shape or type.
    """
    if image.shape != (world.SIZE, world.SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"expected a (32, 32, 3) uint8 image, got {image.shape} {image.dtype}")
    pixels = image.astype(np.float32)
    background, texture, ground = _background(pixels)
    seen = [_object(pixels, ground, mask, region) for mask, region in _parts(pixels, ground)]
    objects = [o for o in seen if o is not None]
    relation = None
    if len(objects) == 2:
        apart_x, apart_y = (abs(getattr(objects[0], axis) - getattr(objects[1], axis)) for axis in "xy")
        objects.sort(key=lambda o: o.x if apart_x >= apart_y else o.y)
        relation = "left of" if apart_x >= apart_y else "above"
    return Reading(tuple(objects), relation, background, texture)


# ------------------------------------------------------------------------------ background


@lru_cache(maxsize=1)
def _textures() -> dict[str, NDArray[np.bool_]]:
    """Where each texture shows its second tone: (32, 32) bool."""
    row, column = np.mgrid[: world.SIZE, : world.SIZE]
    return {
        "plain": np.zeros((world.SIZE, world.SIZE), dtype=bool),
        "striped": row % _CELL < _CELL // 2,
        "checkered": (row // _CELL + column // _CELL) % 2 == 1,
    }


@lru_cache(maxsize=1)
def _grounds() -> tuple[list[tuple[str, str]], Array]:
    """All twelve backgrounds: their names and (12, 32, 32, 3) pixels."""
    names, grounds = [], []
    for background, colour in world.BACKGROUNDS.items():
        base = np.asarray(colour, dtype=np.float32)
        second = np.clip(base + (52 if background == "black" else -52), 0, 255)
        for texture, where in _textures().items():
            names.append((background, texture))
            grounds.append(np.where(where[..., None], second, base))
    return names, np.stack(grounds).astype(np.float32)


def _background(pixels: Array) -> tuple[str, str, Array]:
    """Name, texture and (32, 32, 3) pixels of the background that explains the image best."""
    names, grounds = _grounds()
    distance = np.abs(grounds - pixels).max(-1)
    best = int(np.minimum(distance, _OUTLIER).mean((1, 2)).argmin())
    background, texture = names[best]
    ground, near = grounds[best].copy(), distance[best] < _OUTLIER
    second = _textures()[texture]
    for tone in (second, ~second):
        if (near & tone).sum() >= 20:  # the tone as it really is in this image
            ground[tone] = np.median(pixels[near & tone], axis=0)
    return background, texture, ground


# ------------------------------------------------------------------------------ foreground


def _hue(difference: Array) -> Array:
    """Differences of colour (..., 3) with their grey part damped, since textures and noise are grey."""
    damped: Array = difference - (1 - _GREY_WEIGHT) * difference.mean(-1, keepdims=True)
    return damped


def _coverage(pixels: Array, ground: Array, colour: Array) -> tuple[Array, Array]:
    """How far each pixel lies from ground (0) to colour (1), and its distance from that line."""
    way, gone = _hue(colour - ground), _hue(pixels - ground)
    share = (way * gone).sum(-1) / np.maximum((way * way).sum(-1), 1.0)
    off = np.linalg.norm(gone - np.clip(share, 0, 1.15)[..., None] * way, axis=-1)
    return share, off


def _parts(pixels: Array, ground: Array) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Masks of the objects, each with the region its soft edge may lie in."""
    palette = np.asarray(list(world.COLOURS.values()), dtype=np.float32)
    lines = [_coverage(pixels, ground, colour) for colour in palette]
    nearest = np.stack([off for _, off in lines]).argmin(0)
    share = np.take_along_axis(np.stack([s for s, _ in lines]), nearest[None], 0)[0]
    labels, count = ndimage.label(share > 0.5)
    masks: list[NDArray[np.bool_]] = []
    for i in range(1, count + 1):
        mask = labels == i
        if mask.sum() >= MIN_AREA:
            for part in _by_colour(mask, nearest, share):
                masks += _by_neck(part)
    if not masks:
        return []
    owner = np.zeros(mask.shape, dtype=np.int32)
    for i, mask in enumerate(masks):
        owner[mask] = i + 1
    away, (rows, columns) = ndimage.distance_transform_edt(owner == 0, return_indices=True)
    owner = np.where(away <= 2.3, owner[rows, columns], 0)
    return [(mask, owner == i + 1) for i, mask in enumerate(masks)]


def _by_colour(mask: NDArray[np.bool_], nearest: NDArray[np.intp], share: Array) -> list[NDArray[np.bool_]]:
    """Cut a mask into its colours, where two touching objects differ in colour."""
    core = mask & (share > 0.75)
    colours = np.bincount(nearest[core], minlength=len(world.COLOURS))
    strong = [c for c in np.flatnonzero(colours >= 20) if _largest(core & (nearest == c)).sum() >= 20]
    if len(strong) < 2:
        return [mask]
    _, where = ndimage.distance_transform_edt(~(core & np.isin(nearest, strong)), return_indices=True)
    owner = nearest[where[0], where[1]]  # edge pixels go with the nearest core
    return [_largest(mask & (owner == c)) for c in strong]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected piece of ``mask``."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    piece: NDArray[np.bool_] = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return piece


def _by_neck(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Cut a mask that is far longer than wide at its waist: two objects of one colour, run together."""
    sides = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]  # columns, rows
    lengths = [s[-1] - s[0] + 1 for s in sides]
    axis = 0 if lengths[0] >= lengths[1] else 1
    if lengths[axis] < 18 or lengths[axis] < 1.5 * lengths[1 - axis]:
        return [mask]
    profile = mask.sum(axis)[sides[axis][0] : sides[axis][-1] + 1]
    third = len(profile) // 3
    waist = sides[axis][0] + third + int(profile[third:-third].argmin())
    place = np.arange(world.SIZE)[None, :] if axis == 0 else np.arange(world.SIZE)[:, None]
    halves = [mask & (place < waist), mask & (place >= waist)]
    return halves if min(h.sum() for h in halves) >= 20 else [mask]


# ------------------------------------------------------------------------------ shape


def _object(pixels: Array, ground: Array, mask: NDArray[np.bool_], region: NDArray[np.bool_]) -> Seen | None:
    """Colour, shape and place of the object on ``mask``; None where it is too small to be one."""
    core = ndimage.binary_erosion(mask)
    own = np.median(pixels[core if core.sum() >= 6 else mask], axis=0)
    share, _ = _coverage(pixels, ground, own)
    cover = np.where(region, np.clip(share, 0, 1), 0).astype(np.float32)
    cover[cover < 0.06] = 0  # noise of the background
    area = float(cover.sum())
    if area < MIN_AREA:
        return None
    rows, columns = np.mgrid[: world.SIZE, : world.SIZE]
    x, y = float((cover * columns).sum() / area), float((cover * rows).sum() / area)
    soft = np.pad(ndimage.gaussian_filter(cover, _BLUR), _PATCH)
    fits = []
    for shape in world.SHAPES:
        unit_area, drop = _unit(shape)
        radius = float(np.sqrt(area / unit_area))
        fits.append((_overlap(soft, shape, x, y - drop * radius, radius), shape, radius))
    (second, _, _), (fit, shape, radius) = sorted(fits)[-2:]
    named = fit >= MIN_FIT or (fit >= CLEAR_FIT and fit - second >= CLEAR_LEAD)
    colour = min(world.COLOURS, key=lambda c: float(np.linalg.norm(_hue(own - np.array(world.COLOURS[c], np.float32)))))
    return Seen(shape if named else UNKNOWN, colour, x, y, radius, fit)


def _drawn(shape: str, x: float, y: float, radius: float) -> Array:
    """Coverage (_PATCH, _PATCH) of a shape drawn at (x, y), in pixels from the patch's corner."""
    image = Image.new("L", (_PATCH * _OVERSAMPLE,) * 2)
    world.draw_shape(
        ImageDraw.Draw(image), shape, (x + 0.5) * _OVERSAMPLE, (y + 0.5) * _OVERSAMPLE, radius * _OVERSAMPLE, 255
    )
    small: Array = np.asarray(image.resize((_PATCH, _PATCH), Image.Resampling.BOX), np.float32) / np.float32(255)
    return small


@lru_cache(maxsize=len(world.SHAPES))
def _unit(shape: str) -> tuple[float, float]:
    """Area, and how far the centroid lies below the centre, of a shape of radius 1."""
    drawn = _drawn(shape, _PATCH // 2, _PATCH // 2, 12.0)
    area = float(drawn.sum())
    below = float((drawn * np.arange(_PATCH)[:, None]).sum() / area) - _PATCH // 2
    return area / 144, below / 12


@lru_cache(maxsize=20_000)
def _template(shape: str, part_x: int, part_y: int, size: int, softness: int) -> tuple[Array, float]:
    """A blurred drawing whose centre lies (part_x, part_y) / _FINE pixels off the patch's middle; its area."""
    middle = _PATCH // 2
    drawn = _drawn(shape, middle + part_x / _FINE, middle + part_y / _FINE, size / _FINE)
    blurred = ndimage.gaussian_filter(drawn, _SOFTNESS[softness])
    return blurred, float(blurred.sum())


def _overlap(padded: Array, shape: str, x: float, y: float, radius: float) -> float:
    """Soft intersection over union of a coverage, padded by _PATCH, and a shape drawn at (x, y)."""
    fine_x, fine_y, size = (round(v * _FINE) for v in (x, y, min(radius, 14.0)))
    (whole_x, part_x), (whole_y, part_y) = divmod(fine_x, _FINE), divmod(fine_y, _FINE)
    top, left = (whole - _PATCH // 2 + _PATCH for whole in (whole_y, whole_x))
    seen, total = padded[top : top + _PATCH, left : left + _PATCH], float(padded.sum())
    best = 0.0
    for softness in range(len(_SOFTNESS)):
        template, area = _template(shape, part_x, part_y, size, softness)
        both = float(np.minimum(seen, template).sum())
        best = max(best, both / (total + area - both))
    return best
