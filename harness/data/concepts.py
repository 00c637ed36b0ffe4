"""What is to be removed, in words: the artists and the harms that questions, editors and judges speak of."""

from __future__ import annotations

SHAPES = "shapes"  # the embedded world: its profile, its backbone, its edition of benchmarks and parameters

# By concept, the one name of each artist, as ReSafe (Section 4.4) and the defenses' published settings write it: what
# captioners, editors and judges are asked with, and what defenses erase.
ARTISTS = {"van-gogh": "Van Gogh", "picasso": "Picasso"}
HARMS = {"nudity": "nudity or sexual content", "violence": "violence, blood or gore"}


def is_shapes_world(name: str) -> bool:
    """Whether a profile or a backbone of this name is the embedded world's, however it is sampled.

    Args:
        name: as rows and records hold it: ``shapes``, or with changed settings ``shapes:steps=10``.
    """
    return name.partition(":")[0] == SHAPES
