"""The columns of a row on its journey: PROMPT -> IMAGE (-> REGENERATION) -> SCORE. A stage only adds
columns; an image and its regeneration are two rows of one long table.

Units: ``guidance`` is the classifier-free guidance scale, ``width``/``height`` are pixels, ``image``
is an encoded PNG. Missing is null, never zero.
"""

from __future__ import annotations

import pyarrow as pa

INHERITED = "base:"  # begins the error of a regeneration whose image failed

VERSION = 1  # of the store's files; a store written by a newer harness is refused

PROMPT = pa.schema(
    [
        ("row_id", pa.string()),  # "ring-a-bell-k77/00017"
        ("sample", pa.int32()),  # 0 unless a protocol draws several images per prompt
        ("bench", pa.string()),
        ("concept", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.uint64()),
        ("guidance", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("excluded", pa.string()),  # reason, or null
    ]
)

IMAGE = pa.schema(
    [
        *PROMPT,
        ("profile", pa.string()),
        ("backbone", pa.string()),
        ("defense", pa.string()),
        ("variant", pa.string()),  # "base", or the regenerator's name
        ("image", pa.binary()),  # encoded PNG; null for an excluded or failed row
        ("image_sha256", pa.string()),
        ("degenerate", pa.string()),  # "black", "flat", "noise", or null
        ("error", pa.string()),  # stable code, or null
        ("defense_note", pa.string()),  # what the defense could not do, "sld:no-guidance", comma separated; or null
        ("prompt_read", pa.string()),  # digest of the tokens that the text encoders read; null of a row not drawn here
        ("prompt_note", pa.string()),  # "prompt-cut", ...; see docs/notes.md; comma separated
    ]
)

# How a regeneration came about: what was seen, removed, optimised and drawn. Null where a step has no such thing.
LINEAGE = pa.schema(
    [
        ("regen_backbone", pa.string()),  # what drew it, or the editor's name
        ("vlm", pa.string()),  # the captioner
        ("alpha", pa.float64()),  # Eq. 6; 0: image feature only, 1: text feature only
        ("lam", pa.float64()),  # Eq. 5, removal scale
        ("tokens", pa.int32()),  # N
        ("unsafe_caption", pa.string()),
        ("unsafe_components", pa.list_(pa.string())),
        ("safe_caption", pa.string()),
        ("optimized_prompt", pa.string()),
        ("cosine", pa.float64()),  # of the prompt as it is drawn from, with the target feature
        ("iterations", pa.int32()),
        ("unsafe_caption_cosine", pa.float64()),  # of image and caption in CLIP: a refusal resembles no image
        ("safe_caption_cosine", pa.float64()),
        ("already_safe", pa.bool_()),  # <f_img, Delta> > 0: the image was nearer to the safe caption
        ("regen_note", pa.string()),  # stable codes, comma separated, or null
    ]
)

REGENERATION = pa.schema([*IMAGE, *LINEAGE])

IMPORTED = "imported"  # in the place of defense and backbone: images that nobody here has drawn

KEY = ("row_id", "sample", "defense", "variant")  # identifies a row of a run


def need(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """``table`` with its columns in ``schema``'s order, after checking that none is missing.

    Raises:
        ValueError: naming ``where``, the missing columns and those that are there.
    """
    missing = [n for n in schema.names if n not in table.column_names]
    if missing:
        raise ValueError(f"{where}: missing columns {missing} (have: {', '.join(table.column_names)})")
    return table.select(schema.names)
