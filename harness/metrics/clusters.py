"""Which rows are one observation: those of one prompt, and copies of one image.

Copies are drawn from one prompt, seed, guidance and size; further samples of a prompt, and a prompt that stands in a
benchmark twice, are alike too. So a cluster is the rows whose prompts are the same to whoever draws them: the same
text, or texts that differ only where no text encoder reads (``prompt_read``). Of images that were not drawn here, a
cluster is the copies of one file's image, or those of one prompt where they have prompts. n stays the number of rows;
intervals, tests and "best" go by cluster.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from harness.metrics.comparison import BASE
from harness.store.schema import IMPORTED

Clusters = Mapping[str, str]  # row_id -> the row_id that its cluster is called by
_OF_PROMPTS = ("row_id", "bench", "prompt", "prompt_read")  # the same for every method
COLUMNS = (*_OF_PROMPTS, "defense", "variant", "image_sha256")


def clusters(scores: pa.Table) -> Clusters:
    """The cluster of every row, the same for all methods and samples of it.

    Args:
        scores: rows of schema SCORE of any number of methods; columns that it lacks tell nothing apart.
    """
    names_asked = COLUMNS if _has_imported(scores) else _OF_PROMPTS  # images tell nothing of what was drawn here
    asked = scores.select([name for name in names_asked if name in scores.column_names])
    parents: dict[str, str] = {}
    for row in asked.group_by(asked.column_names, use_threads=False).aggregate([]).to_pylist():
        own = _root(parents, f"row:{row['row_id']}")
        for key in _keys(row):
            parents[_root(parents, f"{row.get('bench')}:{key}")] = own = _root(parents, own)
    names: dict[str, str] = {}
    return {
        row_id: names.setdefault(_root(parents, f"row:{row_id}"), row_id)
        for row_id in dict.fromkeys(scores["row_id"].to_pylist())
    }


def _has_imported(scores: pa.Table) -> bool:
    return "defense" in scores.column_names and IMPORTED in scores["defense"].unique().to_pylist()


def _keys(row: Mapping[str, str | None]) -> list[str]:
    """What a row shares with the others of its cluster."""
    prompt, read, image = (row.get(name) for name in ("prompt", "prompt_read", "image_sha256"))
    imported = row.get("defense") == IMPORTED
    keys = [f"prompt:{prompt}"] if prompt or (prompt is not None and not imported) else []
    keys += [f"read:{read}"] if read else []
    return keys + ([f"image:{image}"] if image and imported and row.get("variant") == BASE else [])


def _root(parents: dict[str, str], key: str) -> str:
    """The name of the set that ``key`` is in; a set of its own if it is new."""
    root = parents.setdefault(key, key)
    while parents[root] != root:
        parents[root] = root = parents[parents[root]]
    while parents[key] != root:
        parents[key], key = root, parents[key]
    return root
