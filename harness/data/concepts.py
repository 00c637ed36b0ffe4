"""What is to be removed, in words: the artists and the harms that questions, editors and judges speak of."""

from __future__ import annotations

SHAPES_EDITION = "shapes"  # of cards: the embedded world's

# By concept, each artist's full name; the one name that captions, editors and judges are asked with.
ARTISTS = {"van-gogh": "Vincent van Gogh", "picasso": "Pablo Picasso"}
HARMS = {"nudity": "nudity or sexual content", "violence": "violence, blood or gore"}
