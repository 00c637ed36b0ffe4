"""One HTML file of a run of 192,000 rows: seconds to write it, its size, and seconds until a browser has it usable.

    python -m benchmarks.report_html [FOLDER]

Table 5 at full size: 15 defenses with and without ReSafe over 6,402 prompts, random NudeNet scores, and
blurred images of the rows that the page chooses. With a Chromium at hand the page is opened, sorted and filtered.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from harness.cards.base import card_roots
from harness.cards.load import load_card, load_cards
from harness.cards.policy import PolicyCard
from harness.metrics.cells import ResultGroup, result_groups
from harness.metrics.measure import measure
from harness.report.html import images
from harness.report.html.run import RunPage, page
from harness.scorers import columns
from harness.store.schema import KEY
from harness.store.shards import publish

BENCHES = {"ring-a-bell-k77": 95, "mma-diffusion": 1000, "p4d": 604, "i2p": 4703}
DEFENSES = 15
POLICIES = ("resafe-nudity-0.45", "rece", "unlearndiffatk")


def scores() -> pa.Table:
    """Rows of schema SCORE with NudeNet's columns, lineage and captions."""
    generator = np.random.default_rng(0)
    tables = []
    for d in range(DEFENSES):
        for variant in ("base", "resafe"):
            for bench, rows in BENCHES.items():
                tables.append(_part(generator, f"defense-{d}" if d else "none", variant, bench, rows))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _part(generator: np.random.Generator, defense: str, variant: str, bench: str, rows: int) -> pa.Table:
    constant = {
        "profile": "paper", "backbone": "sd-1-4", "defense": defense, "variant": variant, "bench": bench,
        "concept": "nudity", "excluded": None, "error": None, "degenerate": None,
    }  # fmt: skip
    table = {name: pa.array([value] * rows, pa.string()) for name, value in constant.items()}
    table["row_id"] = pa.array([f"{bench}/{i:05d}" for i in range(rows)])
    table["sample"] = pa.array([0] * rows, pa.int32())
    table["seed"] = pa.array(generator.integers(0, 2**31, rows), pa.uint64())
    table["prompt"] = pa.array([f"prompt {i} of {bench}, in a few words more" for i in range(rows)])
    table["image_sha256"] = pa.array([f"{i:064x}" for i in range(rows)])
    shift = 0.25 if variant == "resafe" else 0.9 - 0.04 * (int(defense[8:]) if defense != "none" else 0)
    for name, kind in columns("nudenet").items():
        if pa.types.is_floating(kind):
            table[name] = pa.array(generator.random(rows) ** (2 / max(shift, 0.1)), pa.float32())
    if variant == "resafe":
        table |= {name: pa.array(generator.random(rows)) for name in ("alpha", "lam", "cosine")}
        table["safe_caption"] = pa.array([f"a caption of row {i}, in a sentence of some length" for i in range(rows)])
    return pa.table(table)


def shard(folder: Path, own: Sequence[ResultGroup], chosen: Sequence[images.Row]) -> Path:
    """An image shard with a 512 x 512 image for every method of the chosen rows."""
    generator = np.random.default_rng(1)
    wanted = set(chosen)
    entries = []
    for group in own:
        for row in zip(group.rows["row_id"].to_pylist(), group.rows["sample"].to_pylist(), strict=True):
            if row in wanted:
                small = Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).resize((512, 512))
                buffer = io.BytesIO()
                small.save(buffer, format="PNG", compress_level=1)
                entries.append((*row, group.defense, group.variant, buffer.getvalue()))
    kinds = (pa.string(), pa.int32(), pa.string(), pa.string(), pa.binary())
    arrays = [pa.array(values, kind) for values, kind in zip(zip(*entries, strict=True), kinds, strict=True)]
    path = folder / "shards" / "0.parquet"
    publish(path, pa.table(arrays, names=[*KEY, "image"]))
    return path


def main(folder: Path) -> None:
    roots = card_roots()
    policies = {"nudity": tuple(load_card(PolicyCard, name, roots) for name in POLICIES)}
    table = scores()
    own = list(result_groups(table))
    image_shard = shard(folder, own, images.choose(own, policies))
    cells = measure(table, policies)
    start, cpu = time.perf_counter(), time.process_time()
    record = {"run": "table5", "command": "harness eval --defense all --bench i2p", "policies": {}}
    text = page(
        RunPage(record=record, cells=cells, costs=[], policies=policies, scores=table, image_shards=[image_shard],
                published=load_cards(PolicyCard, roots))
    ).encode()  # fmt: skip
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    path = folder / "report.html"
    path.write_bytes(text)
    print(f"rows {table.num_rows:,}, cells {len(cells)}")
    print(f"page {seconds:.1f} s ({cpu:.1f} s of CPU), {len(text) / 1e6:.2f} MB")
    browse(path)


def browse(path: Path) -> None:
    """Open the page in a Chromium and use it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        print("no Chromium at hand: the page was not opened")
        return
    for i in range(3):
        with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
            browser.call("Performance.enable", timeDomain="threadTicks")
            browser.open(path)
            metrics = {m["name"]: m["value"] for m in browser.call("Performance.getMetrics")["metrics"]}
            ready = browser.evaluate("document.documentElement.dataset.ready")
            steps = {
                "sort": "document.querySelectorAll('#rows-table th button')[4].click()",
                "filter": "const box = document.getElementById('filter-text'); box.value = '0042';"
                "box.dispatchEvent(new Event('input'))",
                "two methods": "const s = document.getElementById('pair-second'); s.selectedIndex = 5;"
                "s.dispatchEvent(new Event('change'))",
            }
            timed = {
                name: browser.evaluate(
                    f"(() => {{ const t = performance.now(); {step}; document.body.offsetHeight; "
                    "return Math.round(performance.now() - t) })()"
                )
                for name, step in steps.items()
            }
            used = f"{metrics['TaskDuration']:.2f} s of its thread's CPU"
            then = ", ".join(f"{name} {ms} ms" for name, ms in timed.items())
            print(f"opening {i + 1}: usable after {ready} ms ({used}); then {then}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
