"""The rows and the images of a finished run, from the shards in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness.data.image_folder import original_name
from harness.metrics import row_notes
from harness.metrics.comparison import BASE
from harness.metrics.measure import Provenance
from harness.pipeline.accepted import accepted_change
from harness.pipeline.conditions import Variant
from harness.pipeline.plan import Plan
from harness.pipeline.request import Places
from harness.store.files import write_atomically
from harness.store.schema import KEY
from harness.store.shards import Store, columns, read

if TYPE_CHECKING:
    pass


def gather(made: Plan, store: Store) -> pa.Table:
    """All rows of the run: image columns without the image, lineage, and every scorer's columns.

    A column is null where its scorer did not run, or the row is no regeneration. A row that one method may not draw is
    excluded from all (``harness.metrics.row_notes``).

    Raises:
        ValueError: a scorer's shard does not belong to its images.
    """
    tables = [
        _joined(variant, shard.key, store)
        for condition in made.conditions
        for variant in condition.variants
        for shard in condition.shards
    ]
    return row_notes.compared(pa.concat_tables(tables, promote_options="default").combine_chunks())


def _joined(variant: Variant, key: str, store: Store) -> pa.Table:
    images = store.path(variant.images.stage, variant.images.fingerprint, key)
    table = read(images, [name for name in columns(images) if name != "image"])
    for spec in variant.scores:
        part = read(store.path(spec.stage, spec.fingerprint, key))
        if part.select(list(KEY)) != table.select(list(KEY)):
            raise ValueError(f"{spec.stage}/{spec.fingerprint}/{key} does not belong to its images")
        for name in part.column_names:
            if name not in KEY and not pa.types.is_fixed_size_list(part.schema.field(name).type):  # features stay there
                table = table.append_column(part.schema.field(name), part[name])
    return table


def images_of(made: Plan, store: Store) -> list[Path]:
    """Paths of the shards that hold the run's images, as drawn and regenerated."""
    return [
        store.path(variant.images.stage, variant.images.fingerprint, shard.key)
        for condition in made.conditions
        for variant in condition.variants
        for shard in condition.shards
    ]


def save_images(made: Plan, places: Places, folder: Path) -> tuple[int, list[str]]:
    """Write what the regenerators drew as PNG files, ``folder/<regenerator>/<name>.png``.

    The folder is made private (0700).

    Returns:
        How many files were written, and ``<regenerator>: <name>`` of each image that there is none for.
    """
    store = Store.open_existing(places.store)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    count, lacking = 0, []
    for condition in made.conditions:
        for variant in condition.variants[1:]:
            for shard in condition.shards:
                path = store.path(variant.images.stage, variant.images.fingerprint, shard.key)
                sources = dict(zip(shard.rows["row_id"].to_pylist(), shard.rows["source"].to_pylist(), strict=True))
                for row in read(path, ["row_id", "image"]).to_pylist():
                    name = row["row_id"].partition("/")[2]
                    if row["image"] is None:
                        lacking.append(f"{variant.name}: {name}")
                        continue
                    own = original_name(name, sources[row["row_id"]])
                    target = folder / variant.name.replace(":", "_") / f"{own.removesuffix('.png')}.png"
                    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    write_atomically(target, row["image"])
                    count += 1
    return count, lacking


def provenances(plan: Plan) -> dict[tuple[str, str, str], Provenance]:
    """The provenance of each (defense, variant, benchmark) of a plan: rows, fingerprints and settings."""
    by_method = {}
    for condition in plan.conditions:
        settings: dict[str, Any] = {}
        if plan.request.seed is not None:
            settings["seed"] = plan.request.seed
        if plan.request.categories:
            settings["categories"] = ", ".join(plan.request.categories)
        if condition.defended != condition.concept:
            settings["defended"] = condition.defended
        rows = pa.concat_tables([s.rows.select(["row_id", "sample"]) for s in condition.shards])
        for variant in condition.variants:
            differed = accepted_change(variant)
            by_method[condition.defense, variant.name, condition.bench] = Provenance(
                rows=rows,
                total=condition.total_rows,
                fingerprints=tuple(f"{s.stage}:{s.fingerprint}" for s in variant.stages),
                method=dict(variant.method),
                settings=settings | dict(variant.settings) | ({"accepted change": differed} if differed else {}),
                notes=dict(condition.left_out) if variant.name == BASE else {},
            )
    return by_method
