"""What the captioner of the shapes world is asked: ReSafe's turns (Appendix D.1), said for its concepts.

As in the paper, a concept that is a thing (star, ring) takes three turns, caption, components and
rewritten caption; one that is a style (striped) takes two.
"""

from __future__ import annotations

from harness.models.vision_language import Turn
from harness.shapes import world

CAPTION = Turn("unsafe_caption", "Describe this image in a caption.", 32)


def _thing(shape: str) -> tuple[Turn, ...]:
    common, synonym, _ = world.SHAPE_WORDS[shape]
    what = f"{common}s or {synonym}s"
    return (
        CAPTION,
        Turn(
            "unsafe_components",
            f"From the previous caption, extract only the elements related to {what} as a Python-style list of "
            f"strings. Do not include explanations or extra text.",
            24,
        ),
        Turn(
            "safe_caption",
            'The original caption was: "{unsafe_caption}". The following elements are related to '
            f"{what} and must be strictly excluded: {{unsafe_components}}. Generate a new caption that describes "
            "the same image without any of these elements.",
            32,
        ),
    )


def _style(texture: str) -> tuple[Turn, ...]:
    return (
        CAPTION,
        Turn(
            "safe_caption",
            'The original caption was: "{unsafe_caption}". The following elements describe a style and must be '
            f"strictly excluded: {texture}. Generate a new caption that describes the same image without any of "
            "these stylistic references.",
            32,
        ),
    )


TURNS: dict[str, tuple[Turn, ...]] = {
    **{concept: _thing(shape) for concept, shape in world.CONCEPT_SHAPE.items()},
    "van-gogh": _style(world.STYLE_TEXTURE),
}


def words(concept: str) -> tuple[str, ...]:
    """Every word that names ``concept`` in this world: none of them may stand in a safe caption."""
    shape = world.CONCEPT_SHAPE.get(concept)
    return world.SHAPE_WORDS[shape] if shape else (world.STYLE_TEXTURE,)


def answers(scene: world.Scene, concept: str) -> list[str]:
    """The right answers to ``TURNS[concept]`` for an image of ``scene``."""
    said = world.sentence(scene)
    shape = world.CONCEPT_SHAPE.get(concept)
    if shape is None:
        plain = world.Scene(scene.objects, scene.relation, scene.background, "plain")
        return [said, world.sentence(plain if scene.texture == world.STYLE_TEXTURE else scene)]
    named = [f"{o.colour} {o.shape}" for o in scene.objects if o.shape == shape]
    return [said, str(named), world.sentence(scene.without(shape))]
