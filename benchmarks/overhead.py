"""What the harness adds to the models: the same images by a bare loop and through stages, store and tickets.

    python -m benchmarks.overhead --rows 64 --rounds 5

One process, one thread, alternating, the least of several rounds, models loaded before. The bare loop calls the
pipeline, the classifier and the geometric oracle on arrays and keeps nothing; the harness takes tickets, encodes
PNGs, publishes every shard with fsync, marks attempts and reads the images back for each scorer.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from harness import defenses, scorers
from harness.cards.backbone import BackboneCard
from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.models import text_to_image
from harness.pipeline import executor, plan
from harness.pipeline.request import Request
from harness.pipeline.stages.base import StageActor, WorkerContext
from harness.store.fingerprint import FileHashes
from harness.store.shards import Store

SCORERS = ("shapes_classifier", "shapes_oracle")


def bare(rows: pa.Table) -> Callable[[], None]:
    """The models alone."""
    card = load_card(BackboneCard, "shapes", card_roots())
    pipe = text_to_image.load(card)
    method = defenses.load("none", pipe, {"concept": "nudity"})
    method.attach(pipe)
    found = [scorers.load(stem) for stem in SCORERS]
    asked = [text_to_image.Request(r["prompt"], r["seed"], r["concept"]) for r in rows.to_pylist()]
    canvas = text_to_image.Canvas(card.guidance, card.width, card.height)

    def once() -> None:
        images = text_to_image.sample(pipe, method, asked, canvas, card.steps, card.micro_batch)
        for scorer in found:
            scorer(images)

    return once


def harness(made: plan.Plan, folder: Path) -> Callable[[], None]:
    """The same through one actor, into a new store each time."""
    stages = [executor.specs(made, name) for name in made.stage_names() if name != "score-nudenet"]
    store = Store.open(folder / "store")
    actor = StageActor(stages, WorkerContext(store=store, run=folder / "run"))

    def once() -> None:
        for condition, found in enumerate(made.conditions):
            for shard in range(len(found.shards)):
                done = actor(executor.make_ticket(made, condition, shard)).to_pylist()[0]
                assert done["status"] == "ok", done["detail"]
        for name in made.stage_names():
            shutil.rmtree(folder / "store" / name, ignore_errors=True)

    return once


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    request = Request(
        defenses=("none",), benches=("ring-a-bell-k77",), profile="shapes", limit=chosen.rows, regens=("none",)
    )
    made = plan.make(request, card_roots(), Path("."), FileHashes())
    rows = pa.concat_tables([s.rows for s in made.conditions[0].shards])
    with tempfile.TemporaryDirectory() as folder:
        ways = {"bare loop": bare(rows), "harness": harness(made, Path(folder))}
        for once in ways.values():
            once()  # loads what is loaded lazily
        least = {name: float("inf") for name in ways}
        for _ in range(chosen.rounds):
            for name, once in ways.items():
                started = time.process_time()
                once()
                least[name] = min(least[name], time.process_time() - started)
    print("| | ms per image | ratio |\n| --- | ---: | ---: |")
    for name, seconds in least.items():
        print(f"| {name} | {1000 * seconds / rows.num_rows:.1f} | {seconds / least['bare loop']:.3f} |")


if __name__ == "__main__":
    main()
