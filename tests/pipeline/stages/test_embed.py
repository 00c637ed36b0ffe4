"""The embed stage: whose features there are, and beside which row they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from base_rows import base, beside, image
from numpy.typing import NDArray

from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.errors import TransientError, UserError
from harness.models import clip
from harness.pipeline.stages import caption, embed
from harness.pipeline.stages.base import WorkerContext
from harness.pipeline.stages.images import decode
from harness.store.schema import KEY
from harness.store.shards import Store

WINDOW = 30  # characters


class Letters:
    """Like CLIP: an image's feature is its first pixel and its mean, a text's its length and first letter."""

    micro_batch = 32

    def images(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        return torch.tensor([[float(i[0, 0, 0]), float(i.mean())] for i in images])

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[bool]]:
        return torch.tensor([[float(len(t)), float(ord(t[0]))] for t in texts]), [len(t) > WINDOW for t in texts]


def embedded(rows: pa.Table) -> list[dict[str, Any]]:
    found = embed.Embed(Letters(), {"source": "letters"})(rows)  # type: ignore[arg-type]
    assert found.schema == embed.SCHEMA
    assert found.select(list(KEY)).equals(rows.select(list(KEY)))
    return found.to_pylist()


def captioned(rows: pa.Table, **columns: list[Any]) -> pa.Table:
    n = rows.num_rows
    said = {"unsafe_caption": [f"unsafe {i}" for i in range(n)], "safe_caption": [f"a {i}" for i in range(n)]}
    return beside(rows, caption.SCHEMA, **(said | columns))


def test_features_stand_beside_their_row() -> None:
    rows = embedded(captioned(base(3)))
    for i, row in enumerate(rows):
        assert row["f_image"] == pytest.approx([i, image(i).mean()])
        assert row["f_unsafe"] == [8, ord("u")]
        assert row["f_safe"] == [3, ord("a")]
        assert (row["embed_note"], row["embed_failure"]) == (None, None)


def test_a_row_without_an_image_or_a_caption_has_no_features_and_costs_no_other() -> None:
    rows = captioned(
        base(5, excluded={0: "guard:age-term"}, error={2: "generate:crash"}),
        unsafe_caption=[None, "u 1", None, "I can't", "u 4"],
        safe_caption=[None, "s 1", None, None, "s 4"],
        caption_failure=[None, None, None, "caption:refusal", None],
    )
    found = embedded(rows)
    for name in ("f_image", "f_unsafe", "f_safe"):
        assert [r[name] is None for r in found] == [True, False, True, True, False]
    whole = embedded(captioned(base(5), unsafe_caption=[f"u {i}" for i in range(5)], safe_caption=["s"] * 5))
    assert found[4]["f_image"] == whole[4]["f_image"]


def test_without_captions_there_are_the_images_features() -> None:
    rows = embedded(base(3, error={1: "generate:crash"}))
    assert [r["f_image"] is None for r in rows] == [False, True, False]
    assert [(r["f_unsafe"], r["f_safe"]) for r in rows] == [(None, None)] * 3


def test_what_was_cut_to_the_window_is_noted_for_each_caption() -> None:
    long = "a" * (WINDOW + 1)
    found = embedded(captioned(base(4), unsafe_caption=["u", long, "u", long], safe_caption=["s", "s", long, long]))
    assert [r["embed_note"] for r in found] == [
        None, "unsafe-caption-cut", "safe-caption-cut", "unsafe-caption-cut,safe-caption-cut",
    ]  # fmt: skip


def test_discarded_images_are_asked_for() -> None:
    with pytest.raises(UserError, match="discarded"):
        embedded(captioned(base(2, image={1: None})))


def test_out_of_memory_is_no_row_s_error_and_names_what_would_fit() -> None:
    class Full(Letters):
        def images(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TransientError, match=r"micro_batch 32; set clip.micro_batch: 16 in the profile's card"):
        embed.Embed(Full(), {})(captioned(base(2)))  # type: ignore[arg-type]


def test_failed_rows_say_why() -> None:
    found = embed.Embed(Letters(), {}).failed(base(2), "embed:crash")  # type: ignore[arg-type]
    assert found.schema == embed.SCHEMA
    assert found["embed_failure"].to_pylist() == ["embed:crash"] * 2


# The small world's own CLIP, as a run loads it


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> embed.Embed:
    return embed.load({"clip": held()}, _site(tmp_path_factory.mktemp("embed")), None)


def _site(folder: Path) -> WorkerContext:
    return WorkerContext(store=Store(folder / "store"), run=folder / "run")


def held(**changed: Any) -> dict[str, Any]:
    weights = load_card(ProfileCard, "shapes", card_roots()).clip
    assert weights is not None
    plain = {"source": weights.source, "revision": None, "dtype": weights.dtype, "micro_batch": 4}
    return plain | changed


def test_features_are_clip_s_own_and_not_normalised(worker: embed.Embed) -> None:
    rows = captioned(base(5))
    found = worker(rows)
    model = clip.load(held())
    images = model.images([decode(data) for data in rows["image"].to_pylist()])
    safe, _ = model.texts(rows["safe_caption"].to_pylist())
    torch.testing.assert_close(torch.tensor(found["f_image"].to_pylist()), images, rtol=0, atol=0)
    torch.testing.assert_close(torch.tensor(found["f_safe"].to_pylist()), safe, rtol=0, atol=0)
    assert (images.norm(dim=1) - 1).abs().min() > 0.01


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_parts_of_a_shard_give_what_the_whole_gives(worker: embed.Embed, cut: int) -> None:
    rows = captioned(base(6, error={1: "generate:crash"}))
    parts = [worker(rows.slice(start, cut)) for start in range(0, rows.num_rows, cut)]
    assert pa.concat_tables(parts).equals(worker(rows))


def test_a_loaded_model_is_kept_while_it_is_held_alike(worker: embed.Embed, tmp_path: Path) -> None:
    assert embed.load({"clip": held()}, _site(tmp_path), worker) is worker
    assert embed.load({"clip": held(micro_batch=2)}, _site(tmp_path), worker) is not worker
