"""Where the images of a finished run lie, by its record (run.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def image_stages(condition: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(stage, fingerprint) of every stage of a recorded condition that publishes images."""
    if "variants" in condition:
        yield from ((stage, fingerprint) for stage, fingerprint in (v["images"] for v in condition["variants"]))
    else:  # a record of an earlier release
        yield condition["stages"][0]["stage"], condition["stages"][0]["fingerprint"]


def image_shards(record: Mapping[str, Any], store: Path) -> list[Path]:
    """The shards of all images of a run, whether they are there or not.

    Args:
        record: run.json.
        store: the store's folder.
    """
    return [
        store / stage / fingerprint / f"{shard}.parquet"
        for condition in record["conditions"]
        for stage, fingerprint in image_stages(condition)
        for shard in condition["shards"]
    ]
