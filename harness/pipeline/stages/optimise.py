"""The optimise stage: features in, the prompt whose feature comes nearest to the safe one out (Sections 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from harness.models import clip
from harness.pipeline.stages.images import one_thread
from harness.pipeline.stages.memory import fitting
from harness.regenerators import banned_tokens, hard_prompt, safe_features
from harness.store.schema import KEY, LINEAGE

if TYPE_CHECKING:
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 50
GPU = True
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")


NOT_FINITE = "optimise:not-finite"  # a feature overflowed, as in half precision it can
_SEEN = ("unsafe_caption_cosine", "safe_caption_cosine")  # passed on from the embed stage
_OWN = ("alpha", "lam", "tokens", "optimized_prompt", "cosine", "iterations", "already_safe")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("defense", pa.string()),
        ("variant", pa.string()),
        *(LINEAGE.field(name) for name in (*_OWN, *_SEEN)),
        ("optimise_note", pa.string()),
        ("optimise_failure", pa.string()),  # of this stage or of what it reads
    ]
)


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Optimise:
    """The search; CLIP is kept when only the settings change."""
    if isinstance(previous, Optimise) and previous.held == worker["clip"]:
        model = previous.search.clip
    else:
        one_thread(context.device)
        model = clip.load(worker["clip"], context.device)
    return Optimise(model, worker)


class Optimise:
    """The search for prompts at work."""

    def __init__(self, model: clip.Clip, worker: Mapping[str, Any]) -> None:
        self.held = dict(worker["clip"])
        chosen = dict(worker["settings"])
        self._aim = {name: chosen.pop(name) for name in ("alpha", "lam", "reading", "keep_safe")}
        banned = banned_tokens.banned_ids(model.tokenizer, extra_words=tuple(worker["banned"]))
        self.search = hard_prompt.Optimiser(
            model, banned=banned, micro_batch=chosen.pop("micro_batch"), settings=hard_prompt.Settings(**chosen)
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Raises: TransientError: out of memory, with the micro-batch that would fit."""
        entries = rows.select(list(KEY)).to_pylist()
        for entry, note, failure in zip(
            entries, rows["embed_note"].to_pylist(), rows["embed_failure"].to_pylist(), strict=True
        ):
            entry |= {"optimise_note": note, "optimise_failure": failure}
        for name in _SEEN:
            for entry, cosine in zip(entries, rows[name].to_pylist(), strict=True):
                entry[name] = cosine
        places = [i for i, feature in enumerate(rows["f_image"].to_pylist()) if feature is not None]
        if places:
            picked = rows.take(pa.array(places))
            image, unsafe, safe = (_tensor(picked[c]) for c in ("f_image", "f_unsafe", "f_safe"))
            assert image is not None
            aim = safe_features.target(image, unsafe, safe, **self._aim)
            finite = aim.feature.isfinite().all(dim=1)
            for i, aimed in zip(places, finite.tolist(), strict=True):
                if not aimed:  # no prompt is nearest to that, and the first token over and over would be drawn
                    entries[i]["optimise_failure"] = NOT_FINITE
            aimed_at = finite.nonzero()[:, 0].tolist()
            for place, prompt in zip(aimed_at, self._search(aim.feature[finite]), strict=True):
                i = places[place]
                notes = [entries[i]["optimise_note"], *aim.notes[place], *prompt.notes]
                entries[i] |= {
                    "alpha": self._aim["alpha"],
                    "lam": self._aim["lam"],
                    "tokens": self.search.settings.tokens,
                    "optimized_prompt": prompt.text,
                    "cosine": prompt.cosine,
                    "iterations": prompt.iterations,
                    "already_safe": bool(aim.already_safe[place]) if unsafe is not None else None,
                    "optimise_note": ",".join(n for n in notes if n) or None,
                }
        return pa.Table.from_pylist(entries, schema=SCHEMA)

    def _search(self, targets: torch.Tensor) -> list[hard_prompt.HardPrompt]:
        with fitting(self.search.micro_batch, "optimise.micro_batch", "the card"):
            return self.search(targets)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        keys = rows.select(list(KEY)).to_pylist()
        return pa.Table.from_pylist([k | {"optimise_failure": code} for k in keys], schema=SCHEMA)


def _tensor(column: pa.ChunkedArray) -> torch.Tensor | None:
    """Features (n, d) float32 of a list column; None where no row has one."""
    values = column.to_pylist()
    return None if not values or values[0] is None else torch.tensor(values, dtype=torch.float32)
