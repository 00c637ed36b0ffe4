"""No defense: the undefended backbone, which every other one is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.defenses.base import Defense, Params, Pipe, parse

if TYPE_CHECKING:
    from torch import Tensor

NEEDS = ""  # nothing: it works with every backbone


class NoneParams(Params):
    """There are none beyond those that every mechanism takes."""


PARAMS = NoneParams
ZERO: dict[str, float] = {}


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """A defense that changes nothing."""
    parse(NoneParams, params)
    return Defense()
