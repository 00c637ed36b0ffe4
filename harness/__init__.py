"""Batch evaluation of the safety of text-to-image models.

From Python: ``harness.evaluate(defense=..., bench=..., profile=...)`` and ``harness.load_run(path)``; see
``harness.pipeline.api``. Importing the package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.store.version import __version__ as __version__

__all__ = ["Run", "__version__", "evaluate", "load_run"]

if TYPE_CHECKING:
    from harness.pipeline.api import Run, evaluate, load_run


def __getattr__(name: str) -> Any:
    """The functions of ``harness.pipeline.api``, imported when they are first asked for."""
    if name in ("Run", "evaluate", "load_run"):
        from harness.pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
