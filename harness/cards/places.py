"""Where packaged files lie: the import package, or beside a card."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # harness/, the import package


def locate(source: str, root: Path) -> Path:
    """The file or folder that a ``package:`` source names.

    Args:
        source: ``package:harness/...`` lies in the import package; anything else beside the card's own folder.
        root: the card's root.
    """
    first, _, rest = source.removeprefix("package:").partition("/")
    return PACKAGE / rest if first == "harness" else root / first / rest
