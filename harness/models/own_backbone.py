"""A backbone by its card's name, or by the path of a folder or file of weights, without a card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cards import overrides
from harness.cards.backbone import SINGLE_FILES, BackboneCard, Configuration
from harness.cards.load import card_names, load_card
from harness.cards.places import absolute, is_path
from harness.errors import UserError
from harness.models import checkpoint, local_weights, single_file, weights

# Whose sampling a folder of the same class takes: the first card of that class.
_LIKE = ("sd-1-4", "sdxl", "sd3", "flux")
_SINGLE_FILE = "sd-1-4"  # whose configuration and tokenizer go with a single file
_WEIGHTS = (".safetensors", ".bin")


def backbone(spec: str, roots: Sequence[Path]) -> BackboneCard:
    """The card that ``spec`` names, or one made for the weights at a path, each perhaps sampled otherwise.

    Args:
        spec: ``sd-1-4``, ``sd-1-4:steps=25``, ``./my-model``, ``~/models/mine.safetensors:steps=25``. A path begins
            with ``/``, ``./``, ``../`` or ``~``, or ends as a file of weights does; it is seen from the working folder.
        roots: folders that hold cards.

    Raises:
        UserError: an unknown card or key, a bad value; weights that are not there or are not whole.
    """
    place, changes = _split(spec)
    if not (is_path(place) or place.endswith(SINGLE_FILES)):
        card = overrides.backbone(spec, roots)
    else:
        if not is_path(place):
            place = f"./{place}"
        card = overrides.sampled(_made(Path(absolute(place, Path.cwd())), roots), changes)
    return _with_configuration(card, roots) if card.is_single_file and card.configuration is None else card


def _split(spec: str) -> tuple[str, str | None]:
    """The name or path, and what is to be different (``steps=25:guidance=5``); a path may have colons of its own."""
    parts = spec.split(":")
    count = len(parts)
    while count > 1 and re.fullmatch(r"[a-z_]+=[^/]*", parts[count - 1]):
        count -= 1
    return ":".join(parts[:count]), ":".join(parts[count:]) or None


def _made(place: Path, roots: Sequence[Path]) -> BackboneCard:
    """A card for the weights at ``place``, sampled as the shipped card of the same class.

    Raises:
        UserError: nothing is there, it is not whole, or no card has its class.
    """
    like = load_card(BackboneCard, _SINGLE_FILE, roots)
    asked = like.model_copy(update={"name": _name(place), "source": str(place), "path": place, "files": ()})
    fault = local_weights.fault(asked.weights()[0])
    if fault is not None:
        raise UserError(f"--backbone: {fault}{_not_a_card(place, roots)}")
    values: dict[str, Any] = {}
    if place.is_dir():
        pipeline = local_weights.pipeline_class(place)
        like = _of_class(pipeline, place, roots)
        values = _own_values(place)
    changed: dict[str, Any] = {
        "summary": "weights on a path of the user's own",
        "licence": "of the user's own weights",
        **dict.fromkeys(("revision", "configuration", "variant")),
        **{"name": asked.name, "source": str(place), "path": place, "files": (), "gated": False},
    }
    return like.model_copy(update=changed | values)


def _name(place: Path) -> str:
    """What tables call weights without a card: never as a card, and without their folder."""
    stem = place.stem if place.suffix in SINGLE_FILES else place.name
    return f"{re.sub(r'[^a-z0-9._-]+', '-', stem.lower()).strip('-') or 'weights'}@local"


def _of_class(pipeline: str, place: Path, roots: Sequence[Path]) -> BackboneCard:
    cards = {card.pipeline: card for card in reversed([load_card(BackboneCard, name, roots) for name in _LIKE])}
    if pipeline not in cards:
        raise UserError(
            f"--backbone {str(place)!r}: is a {pipeline}, whose sampling no card says (they say it of "
            f"{', '.join(cards)}); write a card with `source: {place}` (see CONTRIBUTING.md)"
        )
    return cards[pipeline]


def _own_values(folder: Path) -> dict[str, Any]:
    """What a folder says itself: the size that its denoiser was trained at, and whether its weights are half ones."""
    values: dict[str, Any] = {}
    for part in ("unet", "transformer"):
        inside = folder / part
        if not inside.is_dir():
            continue
        settings = json.loads((inside / "config.json").read_text(encoding="utf-8"))
        pixels = _pixels_per_latent(folder)
        if isinstance(settings.get("sample_size"), int) and pixels:
            values |= dict.fromkeys(("width", "height"), settings["sample_size"] * pixels)
        names = [path.name for path in inside.glob("*.safetensors")]
        if names and all(".fp16." in name for name in names):
            values["variant"] = "fp16"
    return values


def _pixels_per_latent(folder: Path) -> int | None:
    """Pixels across that one value of the autoencoder's latents stands for."""
    path = folder / "vae/config.json"
    blocks = json.loads(path.read_text(encoding="utf-8")).get("block_out_channels") if path.is_file() else None
    return 2 ** (len(blocks) - 1) if blocks else None


def _with_configuration(card: BackboneCard, roots: Sequence[Path]) -> BackboneCard:
    """A single file's card with the configuration that its tensors go with.

    Raises:
        UserError: the file is not there, or none of Stable Diffusion 1.
    """
    (own,) = card.weights()
    lines = weights.missing(own)
    if lines:
        raise UserError(lines[0])
    single_file.require_stable_diffusion_1(own.place, checkpoint.shapes(own.place))
    like = load_card(BackboneCard, _SINGLE_FILE, roots)
    files = tuple(name for name in like.files if not name.endswith(_WEIGHTS))
    configuration = Configuration(source=like.source, revision=like.revision, files=files, name=like.name)
    return card.model_copy(update={"configuration": configuration})


def _not_a_card(place: Path, roots: Sequence[Path]) -> str:
    """A hint where a card has the name of what is not there."""
    names = card_names(BackboneCard, roots)
    return f"; the card is called {place.name!r}, without a path" if place.name in names else ""
