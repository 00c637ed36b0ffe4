"""Defenses that papers compare and that have no card here: their names, so that none is taken for a misspelling."""

from __future__ import annotations

import re

_TITLES = (
    "AdaVD", "AdvUnlearn", "AGE", "ANT", "Concept Algebra", "Concept Arithmetic", "Concept Steerers", "ConceptPrune",
    "CPE", "CURE", "Detect-and-Guide", "DoCo", "DUO", "EAP", "EraseAnything", "EraseDiff", "FMN", "Forget-Me-Not",
    "Geom-Erasing", "GuardT2I", "Latent Guard", "LEACE", "MCE", "POSI", "PromptGuard", "RACE", "RealEra", "Safe-CLIP",
    "SafeDPO", "SafeGen", "SafeGuider", "SafeText", "SAeUron", "Scissorhands", "SDD", "Selective Amnesia", "SPEED",
    "SPM", "STEREO", "TraSCE", "TRCE",
)  # fmt: skip


def published(name: str) -> str | None:
    """The title of the published defense that ``name`` means, however it is spelt; None for any other word."""
    return next((title for title in _TITLES if _plain(title) == _plain(name)), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
