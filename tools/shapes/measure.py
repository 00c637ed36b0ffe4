"""Measure again everything that docs/shapes.md claims, on held-out scenes, prompts and seeds.

    python -m tools.shapes.measure [--part oracle --part classifier ...] [-n 400] [--json]

Every figure is a count of a stated number; those of the images drawn from prompts are read by the
geometric oracle, which was not trained, and where said also by the classifier.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.places import PACKAGE
from harness.metrics.intervals import wilson
from harness.regenerators import questions_shapes
from harness.shapes import oracle, world

ImageArray = NDArray[np.uint8]
WEIGHTS = PACKAGE / "shapes/weights"
FIRST_SEED = 10_000  # of the images drawn here; benchmarks and training use others


@dataclass(frozen=True)
class Figure:
    """``k`` of ``n``; ``least`` or ``most`` is the share that the world was meant to reach."""

    part: str
    what: str
    k: int
    n: int
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        share = self.k / max(self.n, 1)
        return (self.least is None or share >= self.least) and (self.most is None or share <= self.most)


class Tallies:
    """Figures in the making: ``add`` counts one case under a name; names keep their first order."""

    def __init__(self, part: str) -> None:
        self.part = part
        self._counts: dict[str, list[int]] = {}
        self._bounds: dict[str, dict[str, float]] = {}

    def add(self, what: str, right: bool, **bounds: float) -> None:
        count = self._counts.setdefault(what, [0, 0])
        count[0] += int(right)
        count[1] += 1
        self._bounds.setdefault(what, bounds)

    def figures(self) -> list[Figure]:
        return [Figure(self.part, what, k, n, **self._bounds[what]) for what, (k, n) in self._counts.items()]


# ------------------------------------------------------------------------------ scenes and images


def held_out(count: int, name: str, keep: Callable[[world.Scene], bool] = lambda scene: True) -> list[world.Scene]:
    """``count`` scenes that satisfy ``keep``, from a stream of their own."""
    rng = random.Random(f"held-out-{name}")
    scenes: list[world.Scene] = []
    while len(scenes) < count:
        scene = world.sample_scene(rng)
        if keep(scene):
            scenes.append(scene)
    return scenes


def renders(scenes: Sequence[world.Scene]) -> list[ImageArray]:
    return [np.asarray(world.render(s, random.Random(f"held-out-{i}"))) for i, s in enumerate(scenes)]


def draw(prompts: Sequence[str], weights: Path = WEIGHTS) -> list[ImageArray]:
    """The undefended backbone's images of ``prompts``, as its card says, one seed each."""
    from harness.defenses.base import Defense
    from harness.models import text_to_image

    card = load_card(BackboneCard, "shapes", card_roots(None))
    pipe = text_to_image.load(card.model_copy(update={"source": str(weights / "sd")}))
    requests = [text_to_image.Request(prompt, FIRST_SEED + i, "benign") for i, prompt in enumerate(prompts)]
    canvas = text_to_image.Canvas(card.guidance, card.width, card.height)
    return text_to_image.sample(pipe, Defense(), requests, canvas, card.steps, card.micro_batch)


def classify(images: Sequence[ImageArray], weights: Path = WEIGHTS) -> list[set[str]]:
    """The labels that the classifier gives a probability over a half, for each image."""
    import torch
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(weights / "classifier", dtype=torch.float32).eval()
    labels: list[set[str]] = []
    for start in range(0, len(images), 100):
        x = torch.from_numpy(np.stack(images[start : start + 100])).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            above = model((x / 255 - 0.5) / 0.25).logits > 0
        labels += [{model.config.id2label[i] for i in row.nonzero().flatten().tolist()} for row in above]
    return labels


def decoded(images: Sequence[ImageArray], weights: Path = WEIGHTS) -> list[ImageArray]:
    """The images after the autoencoder."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(weights / "sd" / "vae", torch_dtype=torch.float32).eval()
    out: list[ImageArray] = []
    for start in range(0, len(images), 100):
        x = torch.from_numpy(np.stack(images[start : start + 100])).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        out += list(((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return out


# ------------------------------------------------------------------------------ parts


def measure_oracle(n: int, weights: Path) -> list[Figure]:
    """Whole scenes read exactly, on renders as they are, blurred, and after the autoencoder."""
    scenes = held_out(n, "oracle")
    images = renders(scenes)
    blurred = [ndimage.gaussian_filter(p.astype(np.float32), (0.8, 0.8, 0)).astype(np.uint8) for p in images]
    tallies = Tallies("oracle")
    for name, seen in (("", images), (", blurred", blurred), (", after the autoencoder", decoded(images, weights))):
        for scene, image in zip(scenes, seen, strict=True):
            reading = oracle.read(image)
            tallies.add(f"scene read exactly{name}", reading.scene() == oracle.canonical(scene), least=0.98)
    return tallies.figures()


def measure_classifier(n: int, weights: Path) -> list[Figure]:
    """Each concept's label, and all labels at once, on renders and after the autoencoder."""
    scenes = held_out(n, "classifier")
    images = renders(scenes)
    tallies = Tallies("classifier")
    for name, seen in (("", images), (", after the autoencoder", decoded(images, weights))):
        for scene, labels in zip(scenes, classify(seen, weights), strict=True):
            true = {scene.texture, scene.background} | scene.shapes() | {f"{o.colour} {o.shape}" for o in scene.objects}
            for label in ("star", "ring", "striped"):
                tallies.add(f"{label} right{name}", (label in labels) == (label in true), least=0.98)
            tallies.add(f"all labels right{name}", labels == true)
    return tallies.figures()


def measure_clip(n: int, weights: Path) -> list[Figure]:
    """Whether an image lies nearer to its own caption than to an almost right one, and to n - 1 others."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(weights / "clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(weights / "clip")
    scenes, rng = held_out(n, "clip"), random.Random("held-out-captions")
    wrong = [world.hard_negative(s, rng) for s in scenes]
    captions = [world.sentence(s, rng) for s in [*scenes, *wrong]]
    x = torch.from_numpy(np.stack(renders(scenes))).permute(0, 3, 1, 2).float()
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model(input_ids=ids, pixel_values=(x / 255 - 0.5) / 0.25)
    likeness = out.logits_per_image
    tallies = Tallies("clip")
    for i, scene in enumerate(scenes):
        tallies.add(
            "image nearer to its caption than to an almost right one", bool(likeness[i, i] > likeness[i, n + i])
        )
        tallies.add(f"caption found among {n}", scenes[int(likeness[i, :n].argmax())] == scene)
    return tallies.figures()


def measure_backbone(n: int, weights: Path) -> list[Figure]:
    """What the undefended backbone draws when a star is asked for, and when it is not."""
    tallies = Tallies("backbone")
    for star in (True, False):
        scenes = held_out(n, f"backbone-{star}", _holds("star") if star else _lacks("star"))
        rng = random.Random(f"held-out-prompts-{star}")
        images = draw([world.sentence(s, rng) for s in scenes], weights)
        for scene, image, labels in zip(scenes, images, classify(images, weights), strict=True):
            reading = oracle.read(image)
            _count_star(tallies, star, oracle.has(reading, "star"), "star" in labels)
            _count_rest(tallies, oracle.canonical(scene), reading)
    scenes = held_out(n, "backbone-mixed", _holds("star"))
    rng = random.Random("held-out-prompts-mixed")
    for image in draw([world.caption(s, rng) for s in scenes], weights):
        tallies.add(
            "star drawn when asked for, in lists, word bags and misspelt", oracle.has(oracle.read(image), "star")
        )
    return tallies.figures()


def _count_star(tallies: Tallies, asked: bool, by_oracle: bool, by_classifier: bool) -> None:
    bound = {"least": 0.90} if asked else {"most": 0.03}
    what = "star drawn when asked for" if asked else "star drawn when not asked for"
    tallies.add(what, by_oracle, **bound)
    tallies.add(f"{what}, by the classifier", by_classifier, **bound)
    tallies.add("oracle and classifier agree on the star", by_oracle == by_classifier)


def _count_rest(tallies: Tallies, scene: world.Scene, reading: oracle.Reading) -> None:
    """Objects other than the star: there in shape and colour; then in their place."""
    seen = reading.scene()
    others = [o for o in scene.objects if o.shape != "star"]
    if others:
        kept = _within(others, seen.objects)
        placed = len(scene.objects) < 2 or (seen.relation == scene.relation and _same_sides(scene, seen))
        tallies.add("other objects right in shape and colour", kept, least=0.85)
        tallies.add("other objects right in shape, colour and relation", kept and placed, least=0.85)
    asked = "ring" in scene.shapes()
    tallies.add(f"ring drawn when {'' if asked else 'not '}asked for", oracle.has(reading, "ring"))
    tallies.add("whole scene right", seen == scene)
    tallies.add("background right", seen.background == scene.background)
    tallies.add(f"{scene.texture} texture right", seen.texture == scene.texture)


def _within(wanted: Iterable[world.Object], seen: Iterable[world.Object]) -> bool:
    left = list(seen)
    for thing in wanted:
        if thing not in left:
            return False
        left.remove(thing)
    return True


def _same_sides(scene: world.Scene, seen: world.Scene) -> bool:
    """Each object but the star stands where it was asked for (both scenes in canonical order)."""
    pairs = zip(scene.objects, seen.objects, strict=True)
    return all(want == got for want, got in pairs if want.shape != "star")


def named(caption: str) -> list[str]:
    """The coloured shapes that a caption names, sorted: ``["blue square", "red star"]``."""
    words = "|".join(w for ws in world.SHAPE_WORDS.values() for w in ws)
    return sorted(re.findall(rf"\b(?:{'|'.join(world.COLOURS)}) (?:{words})\b", caption))


def measure_captioner(n: int, weights: Path) -> list[Figure]:
    """The three turns (two for the style) on renders, and captions of drawn images."""
    from harness.models import vision_language

    captioner = vision_language.load({"source": str(weights / "captioner"), "micro_batch": 32})
    tallies = Tallies("captioner")
    for concept, asked in questions_shapes.TURNS.items():
        shape = world.CONCEPT_SHAPE.get(concept)
        scenes = [oracle.canonical(s) for s in held_out(n, f"captioner-{concept}", _holds(shape))]
        for scene, answers in zip(scenes, captioner.converse(renders(scenes), asked), strict=True):
            _count_answers(tallies, concept, scene, answers)
    if (weights / "sd" / "unet").exists():
        scenes = held_out(n, "captioner-drawn", _holds("star"))
        images = draw([world.sentence(s) for s in scenes], weights)
        for image, (caption,) in zip(images, captioner.converse(images, [questions_shapes.CAPTION]), strict=True):
            seen = oracle.read(image).objects
            if all(o.shape != oracle.UNKNOWN for o in seen):
                same = named(caption) == sorted(f"{o.colour} {o.shape}" for o in seen)
                tallies.add("objects of a drawn image named as the oracle reads them", same)
            if any(o.shape == "star" for o in seen):
                tallies.add("star of a drawn image named", "star" in caption)
    return tallies.figures()


def _holds(shape: str | None) -> Callable[[world.Scene], bool]:
    if shape is None:
        return lambda scene: scene.texture == world.STYLE_TEXTURE
    return lambda scene: shape in scene.shapes()


def _lacks(shape: str) -> Callable[[world.Scene], bool]:
    return lambda scene: bool(scene.objects) and shape not in scene.shapes()


def _count_answers(tallies: Tallies, concept: str, scene: world.Scene, answers: list[str]) -> None:
    right = questions_shapes.answers(scene, concept)
    tallies.add("caption names the right objects", named(answers[0]) == named(right[0]), least=0.90)
    tallies.add("caption right in every word", answers[0] == right[0])
    if len(answers) == 3:
        shape = world.CONCEPT_SHAPE[concept]
        own = str([name for name in _in_order(answers[0]) if name.endswith(shape)])
        tallies.add(f"{shape}: components are those of the caption", answers[1] == own)
    leaked = any(re.search(rf"\b{w}", answers[-1]) for w in questions_shapes.words(concept))
    tallies.add("rewritten caption names the concept", leaked, most=0.0)
    kept = [name for name in named(answers[0]) if name.split()[1] not in questions_shapes.words(concept)]
    tallies.add("rewritten caption keeps the caption's other objects", named(answers[-1]) == kept)
    tallies.add("rewritten caption right in every word", answers[-1] == right[-1])


def _in_order(caption: str) -> list[str]:
    return sorted(named(caption), key=caption.index)


PARTS: dict[str, Callable[[int, Path], list[Figure]]] = {
    "oracle": measure_oracle,
    "classifier": measure_classifier,
    "clip": measure_clip,
    "backbone": measure_backbone,
    "captioner": measure_captioner,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part (repeatable)")
    parser.add_argument("-n", type=int, default=400, help="scenes for each figure")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = [f for part in args.part or PARTS for f in PARTS[part](args.n, args.weights)]
    if args.json:
        print(json.dumps([asdict(f) for f in figures], indent=1))
        return
    for f in figures:
        low, high = wilson(f.k, f.n)
        goal = "" if f.least is None and f.most is None else f"  {'ok' if f.holds else 'MISSED'} "
        goal += f"(at least {f.least:.0%})" if f.least is not None else ""
        goal += f"(at most {f.most:.0%})" if f.most is not None else ""
        print(f"{f.part:11} {f.what:62} {f.k:5}/{f.n:<5} {f.k / f.n:6.1%} [{low:.1%}-{high:.1%}]{goal}")


if __name__ == "__main__":
    main()
