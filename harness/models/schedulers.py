"""Another scheduler for a pipeline: one that diffusers calls compatible with the pipeline's own."""

from __future__ import annotations

from typing import Any

from harness.errors import UserError, nearest


def changed(what: str, shipped: Any, name: str) -> Any:
    """The scheduler ``name`` with the settings (noise levels, kind of prediction) of the one that a pipeline ships.

    Args:
        what: what errors call the pipeline, such as "backbone sd-1-4".
        shipped: the pipeline's own scheduler, of diffusers.
        name: class of diffusers.

    Raises:
        UserError: diffusers has no such scheduler that is compatible with the shipped one.
    """
    compatible = {cls.__name__: cls for cls in shipped.compatibles}
    if name not in compatible:
        raise UserError(
            f"{what}: no scheduler {name!r} that is compatible with {type(shipped).__name__}"
            f"{nearest(name, compatible)} (there are: {', '.join(sorted(compatible))})"
        )
    return compatible[name].from_config(shipped.config)
