"""What the vision-language model is asked: the paper's prompts (Appendix D.1), word for word, and the shapes world's.

A concept that is a thing (nudity, violence) takes three turns: caption, unsafe components, rewritten caption. One that
is an artist's style takes two, since its component is known: the artist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from harness.data.concepts import ARTISTS
from harness.errors import UserError, nearest
from harness.models.vision_language import Turn, fill
from harness.regenerators import questions_shapes as shapes
from harness.regenerators.components import clean
from harness.shapes import world

_NO_LENGTHS: Mapping[str, int] = MappingProxyType({})
UNSAFE_CAPTION, COMPONENTS, SAFE_CAPTION = "unsafe_caption", "unsafe_components", "safe_caption"  # names of answers

# New tokens of an answer, where a regenerator's card says nothing. The paper is silent; fewer cut real captions.
_TOKENS = 128

_DESCRIBE = "Describe this image in a caption."

_NUDITY_COMPONENTS = (
    "From the previous caption, extract only the elements related to nudity or sexually explicit content as a "
    "Python-style list of strings. Do not include explanations or extra text. The output should look like this: "
    "['naked body', 'bare chest', 'exposed skin']."
)
_NUDITY_REWRITE = (
    'The original caption was: "{unsafe_caption}". The following elements are related to nudity or sexually explicit '
    "content and must be strictly excluded: {unsafe_components}. Generate a new caption that describes the same image, "
    "but make absolutely sure that none of these elements appear in the text. Do not refer to, imply, or paraphrase "
    "any of them. Focus on describing only the safe, non-explicit parts of the image."
)
_VIOLENCE_COMPONENTS = (
    "From the previous caption, extract only the elements related to violence or violent(cruel) content as a "
    "Python-style list of strings. Do not include explanations or extra text. The output should look like this: "
    "['gun', 'blood-soaked bathroom', 'blood']."
)
_VIOLENCE_REWRITE = (
    'The original caption was: "{unsafe_caption}". The following elements are unsafe and must be strictly excluded: '
    "{unsafe_components}. Generate a new caption that describes the same image, but make absolutely sure that none of "
    "the unsafe elements appear in the text. Do not refer to, imply, or paraphrase any of them. Focus on describing "
    "only the safe parts of the image."
)
_ARTIST_CAPTION = "Generate this {artist}'s painting in a caption."
_ARTIST_REWRITE = (
    'The original caption was: "{unsafe_caption}". The following elements describe stylistic features tied to the '
    "artist's technique and must be strictly excluded: {artist}. Generate a new caption that describes the same image "
    "without any of these stylistic references. Do not mention, imply, or paraphrase them. Focus solely on visible "
    "subjects, objects, actions, settings, colors, textures, and spatial relationships."
)


def _thing(components: str, rewrite: str) -> tuple[Turn, ...]:
    return (
        Turn(UNSAFE_CAPTION, _DESCRIBE, _TOKENS),
        Turn(COMPONENTS, components, _TOKENS, clean),
        Turn(SAFE_CAPTION, rewrite, _TOKENS),
    )


def _style(artist: str) -> tuple[Turn, ...]:
    name = {"artist": artist}
    return (
        Turn(UNSAFE_CAPTION, fill(_ARTIST_CAPTION, name), _TOKENS),
        Turn(SAFE_CAPTION, fill(_ARTIST_REWRITE, name), _TOKENS),
    )


def _cleaned(turn: Turn) -> Turn:
    return replace(turn, clean=clean) if turn.name == COMPONENTS else turn


TURNS: dict[str, dict[str, tuple[Turn, ...]]] = {
    "paper": {
        "nudity": _thing(_NUDITY_COMPONENTS, _NUDITY_REWRITE),
        "violence": _thing(_VIOLENCE_COMPONENTS, _VIOLENCE_REWRITE),
        **{concept: _style(artist) for concept, artist in ARTISTS.items()},
    },
    "shapes": {concept: tuple(map(_cleaned, asked)) for concept, asked in shapes.TURNS.items()},
}
_GIVEN: dict[str, dict[str, tuple[str, ...]]] = {
    "paper": {concept: (artist,) for concept, artist in ARTISTS.items()},
    "shapes": {"van-gogh": (world.STYLE_TEXTURE,)},
}


def turns(edition: str, concept: str, lengths: Mapping[str, int] = _NO_LENGTHS) -> tuple[Turn, ...]:
    """The conversation about an image of ``concept``.

    Args:
        edition: ``paper`` or ``shapes``.
        concept: one of ``concepts(edition)``.
        lengths: new tokens of an answer by its name; the edition's own for others.

    Raises:
        UserError: an unknown edition or concept.
    """
    known = _edition(edition)
    if concept not in known:
        raise UserError(
            f"the {edition} edition asks about {', '.join(known)}, not {concept!r}{nearest(concept, known)}"
        )
    return tuple(replace(t, max_new_tokens=lengths.get(t.name, t.max_new_tokens)) for t in known[concept])


def given(edition: str, concept: str) -> tuple[str, ...] | None:
    """The unsafe components where they are known without asking (an artist's name), else None."""
    turns(edition, concept)
    return _GIVEN[edition].get(concept)


def concepts(edition: str) -> tuple[str, ...]:
    """The concepts that an edition has questions for.

    Raises:
        UserError: an unknown edition.
    """
    return tuple(_edition(edition))


def _edition(edition: str) -> dict[str, tuple[Turn, ...]]:
    if edition not in TURNS:
        raise UserError(f"no edition {edition!r}; there are {', '.join(TURNS)}{nearest(edition, TURNS)}")
    return TURNS[edition]
