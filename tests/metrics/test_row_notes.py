"""What rows say of one another: who stands out of a comparison, whose seeds collide, which captions are unlike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scored import asr, policy, row, table

from harness.metrics.measure import measure
from harness.metrics.row_notes import compared, count_notes, far_below, seeds_collide, stand_out

DRAWN = pa.schema(
    [(n, pa.string()) for n in ("row_id", "bench", "profile", "backbone", "defense", "variant", "prompt_read")]
    + [(n, pa.string()) for n in ("excluded", "prompt_note")]
    + [("sample", pa.int32()), ("seed", pa.uint64()), ("guidance", pa.float32())]
    + [("width", pa.int32()), ("height", pa.int32())]
)


def drawn(*entries: dict[str, Any]) -> pa.Table:
    plain = {
        "bench": "b", "profile": "p", "backbone": "q", "defense": "none", "variant": "base", "prompt_read": "aa",
        "sample": 0, "guidance": 7.5, "width": 64, "height": 64,
    }  # fmt: skip
    return pa.Table.from_pylist([plain | {"row_id": f"b/{i}"} | e for i, e in enumerate(entries)], schema=DRAWN)


def test_seeds_that_agree_in_their_lower_32_bits_draw_one_image_and_are_noted() -> None:
    """That they do is torch's: two generators on the CPU, one image."""
    import torch

    seeds = [7, 7 + (1 << 32), 8 + (1 << 32), 7]
    noise = [torch.randn(4, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[1], noise[2])
    found = drawn(*({"seed": seed} for seed in seeds[:3]), {"seed": 7 + (1 << 33), "prompt_read": "bb"})
    assert seeds_collide(found).tolist() == [True, True, False, False]
    assert compared(found)["prompt_note"].to_pylist() == ["seed-collision", "seed-collision", None, None]


def test_one_seed_twice_is_a_copy_and_no_collision() -> None:
    large = 5 + (1 << 40)
    assert not seeds_collide(drawn({"seed": large}, {"seed": large})).any()
    assert not seeds_collide(drawn({"seed": 5}, {"seed": large, "guidance": 3.0})).any()
    assert not seeds_collide(drawn({"seed": 5}, {"seed": large, "defense": "uce"})).any()


def test_a_row_that_one_method_may_not_draw_stands_out_of_every_column() -> None:
    scores = table([
        row(0, "unsafe"), row(1, "safe"), row(2, "unsafe"), row(0, "safe", "sld"), row(1, "safe", "sld"),
        row(2, "excluded", "sld"), row(2, "unsafe", bench="c"),
    ])  # fmt: skip
    found = stand_out(scores)
    assert found["excluded"].to_pylist() == [None, None, "other-method:age-term", None, None, "age-term", None]
    assert found["probe_a"].null_count == 2
    cells = [c for c in measure(found, {"nudity": [policy()]}) if c.bench == "b"]
    plain, sld = asr(cells), asr(cells, "sld")
    assert [(c.k, c.n, c.excluded) for c in (plain, sld)] == [(1, 2, 1), (0, 2, 1)]
    assert plain.reasons == {"excluded: other-method:age-term": 1}
    assert plain.compared is not None
    assert sld.compared is not None
    assert sld.compared.pairs == 2


def test_where_all_methods_have_the_same_rows_nothing_is_changed() -> None:
    scores = table([row(i, o, d) for d in ("none", "uce") for i, o in enumerate(("unsafe", "excluded", "error"))])
    assert stand_out(scores).equals(scores)


def captions(values: list[float | None], vlm: str = "qwen") -> pa.Table:
    n = len(values)
    return pa.table({
        "unsafe_caption_cosine": pa.array(values, pa.float64()), "vlm": [vlm] * n, "concept": ["nudity"] * n,
    })  # fmt: skip


def test_a_caption_far_below_the_others_is_unlike_its_image() -> None:
    generator = np.random.default_rng(3)
    values: list[float | None] = [float(v) for v in generator.normal(0.27, 0.02, 60)]
    values[10], values[11] = 0.08, None
    found = far_below(captions(values), "unsafe_caption_cosine")
    assert np.flatnonzero(found).tolist() == [10]


def test_few_captions_or_equal_ones_say_nothing() -> None:
    assert not far_below(captions([0.3] * 6 + [0.0]), "unsafe_caption_cosine").any()
    assert not far_below(captions([0.3] * 20 + [0.29]), "unsafe_caption_cosine").any()


def test_captioners_are_not_compared_with_one_another() -> None:
    both = pa.concat_tables([captions([0.3] * 20), captions([0.1] * 20, "other")])
    assert not far_below(both, "unsafe_caption_cosine").any()


def test_notes_are_counted_by_code_and_row() -> None:
    notes = pa.table({"prompt_note": ["prompt-cut", "prompt-blank,prompt-cut", None, "prompt-cut,prompt-cut"]})
    assert count_notes(notes, ["prompt_note", "regen_note"]) == {"prompt-cut": 3, "prompt-blank": 1}


@pytest.mark.parametrize("variant", ["base", "resafe"])
def test_a_cell_says_what_is_noted_of_its_own_images(variant: str) -> None:
    entries = [row(i, "safe", variant=variant) for i in range(3)]
    scores = table(entries).append_column("prompt_note", pa.array(["prompt-cut", None, None], pa.string()))
    scores = scores.append_column("regen_note", pa.array([None, "safe-caption-unlike", None], pa.string()))
    expected = {"prompt-cut": 1} if variant == "base" else {"safe-caption-unlike": 1}
    assert asr(measure(scores, {"nudity": [policy()]}), "none", variant).notes == expected
