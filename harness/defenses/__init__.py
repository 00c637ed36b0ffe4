"""Defenses: what changes a backbone so that it draws more safely; one module per mechanism.

A *mechanism* is a module here, or one that another installed package brings by an entry point of the group
``harness.defenses`` (``harness.cards.plugins``). Cards (``pipelines/defenses``) name it by file stem or entry point::

    PARAMS = MyParams         the class of its parameters, by which a card is checked before anything runs
    NEEDS = "unet"            what its backbone must offer (`BackboneCard.offers`); without it, "unet"
    LIBRARIES = ("scipy",)    distributions whose versions it depends on, beside those that draw; without it, none
    ZERO = {"scale": 0.0}     parameters at which it changes nothing, for `harness conformance`; without it, none
    load(pipe, params, artefact) -> Defense

and, where something must be made before it can run::

    ARTEFACT = "unet-delta"   what kind of thing is made: one of KINDS
    build(pipe, params, context) -> tensors          makes it; see `BuildContext`; leaves ``pipe`` as it was
    estimate(params) -> BuildEstimate                its steps and images; left out where it takes seconds
    QUICK = {"steps": 4}      parameters with which it takes seconds, for `harness conformance`; left out where it does
    read_weights(path, pipe) -> tensors              reads published weights whose files are not a UNet's
    check_artefact(tensors, pipe)                    refuses tensors that do not fit ``pipe``, naming keys; left
                                                     out by a "unet-delta", which is checked against the UNet

A module that has ``PARAMS`` imports torch inside functions only, so that checking a card loads no model library;
neither does importing this package.

``params`` are a card's resolved parameters, with ``concept`` beside them: the concept the run is about,
for the guard. Where it is missing, the guard's strictest rule (``nudity``) holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.cards.plugins import Plugin
from harness.cards.weights_ref import HUB, parse_hub_file
from harness.cards.yaml_file import show
from harness.data.hub import cached_file
from harness.defenses import _find
from harness.errors import UserError
from harness.models import intact

if TYPE_CHECKING:
    from torch import Tensor

    from harness.cards.backbone import BackboneCard
    from harness.cards.defense import DefenseCard
    from harness.defenses.base import BuildContext, BuildEstimate
    from harness.defenses.base import Defense as Defense

KINDS = ("unet-delta", "lora", "adapter", "hook-parameters", "pipeline")  # of artefacts
_FILES = ("preserve", "anchors", "domain", "image_adapter")  # parameters that may name a file
_NEEDED = {
    "unet": "changes the UNet of a StableDiffusionPipeline",
    "prompt_tokens": "changes the tokens of a prompt, which it knows in Stable Diffusion 1 to 3 and XL",
    "negative_prompt": "needs a negative prompt, which a distilled model reads only with `true_cfg` above 1",
}


def names() -> list[str]:
    """The mechanisms: modules of this package that define ``load``, and what installed packages bring."""
    return _find.names()


def faults() -> dict[str, str]:
    """Why mechanisms that installed packages bring cannot be used, by name; imports them."""
    return _find.faults()


def plugin(mechanism: str) -> Plugin | None:
    """What brings the mechanism; None where it is one of our own.

    Raises:
        UserError: several packages bring it, or it is one of our own too.
    """
    return _find.plugin(mechanism)


def module_name(mechanism: str) -> str:
    """The dotted name of the mechanism's module."""
    return _find.module_name(mechanism)


def declared(mechanism: str, name: str) -> Any:
    """The plain value that a mechanism's module assigns to ``name``; None where it does not. Nothing is imported.

    Raises:
        UserError: unknown mechanism, or no plain value.
    """
    return _find.literal(mechanism, name, None)


def libraries(mechanism: str) -> tuple[str, ...]:
    """Distributions whose versions the mechanism depends on, beside those that draw. Nothing is imported.

    Returns:
        What its module's ``LIBRARIES`` names, and the package that brings it where that is not ours.

    Raises:
        UserError: unknown mechanism.
    """
    declared = _find.literal(mechanism, "LIBRARIES", ())
    brought = _find.plugin(mechanism)
    return (*([] if brought is None else [brought.package]), *declared)


def load(mechanism: str, pipe: Any, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None = None) -> Defense:
    """The defense, ready to be attached to ``pipe``.

    Args:
        mechanism: module stem.
        pipe: a diffusers StableDiffusionPipeline; not changed.
        params: resolved parameters.
        artefact: what ``build`` made; None where there is nothing to build.

    Raises:
        UserError: unknown mechanism or parameter, or a bad value.
    """
    defense: Defense = _find.module(mechanism).load(pipe, params, artefact)
    return defense


def build(
    mechanism: str, pipe: Any, params: Mapping[str, Any], context: BuildContext | None = None
) -> dict[str, Tensor]:
    """The tensors that a defense is loaded with: read from published weights where ``params`` names some, else built.

    Args:
        mechanism: module stem.
        pipe: the undefended pipeline; not changed.
        params: resolved parameters; ``weights`` replaces building by a file, a folder or a hub id.
        context: folder for checkpoints, progress callback, and how to draw training images; None: no checkpoints, no
            progress, and a mechanism that needs images is refused.

    Returns:
        Key to float32 tensor on the CPU. The keys of a "unet-delta" are those of a diffusers UNet; tensors that the
        defense does not change are left out or equal to the undefended ones.

    Raises:
        UserError: nothing to build, a bad parameter, a refused text, or weights that do not fit.
    """
    from harness.defenses.base import BuildContext

    module = _find.module(mechanism)
    if artefact_kind(mechanism) is None:
        raise UserError(f"defense mechanism {mechanism!r} has nothing to build (its card needs `artefact: false`)")
    weights = params.get("weights")
    if weights is None:
        made: dict[str, Tensor] = module.build(pipe, params, context or BuildContext())
        return made
    return _published(module, locate(str(weights)), pipe)


def require_fitting(mechanism: str, params: Mapping[str, Any], outline: Any) -> None:
    """Refuse published weights that do not fit a backbone, before that is loaded; nothing to do where none are named.

    Args:
        mechanism: module stem.
        params: resolved parameters.
        outline: the backbone's ``unet``, whose tensors need no values, and ``tokenizer``.

    Raises:
        UserError: missing, unreadable, or of another model, and what they look like.
    """
    if params.get("weights") is not None:
        _published(_find.module(mechanism), locate(str(params["weights"])), outline)


def estimate(mechanism: str, params: Mapping[str, Any]) -> BuildEstimate:
    """Steps, images and denoiser calls of a build; all zero for closed forms and published weights.

    Raises:
        UserError: unknown mechanism or a bad parameter.
    """
    from harness.defenses.base import BuildEstimate

    module = _find.module(mechanism)
    if params.get("weights") is not None or not hasattr(module, "estimate"):
        return BuildEstimate()
    estimated: BuildEstimate = module.estimate(params)
    return estimated


def artefact_kind(mechanism: str) -> str | None:
    """The kind of artefact that a mechanism builds, one of ``KINDS``; None where there is nothing to build.

    The module is parsed, not imported.

    Raises:
        UserError: unknown mechanism.
    """
    kind: str | None = _find.literal(mechanism, "ARTEFACT", None)
    if kind is not None and kind not in KINDS:
        raise UserError(f"defense mechanism {mechanism!r}: ARTEFACT is {kind!r}, not one of {', '.join(KINDS)}")
    return kind


def read_built(mechanism: str, path: Path, pipe: Any) -> dict[str, Tensor]:
    """The tensors that ``build`` made and ``write_artefact`` wrote, checked against ``pipe``.

    Raises:
        UserError: missing, unreadable, changed since it was written, or not this pipeline's.
    """
    from harness.defenses import artefact

    tensors = artefact.read(path)
    _fit(_find.module(mechanism), tensors, pipe, str(path))
    return tensors


def write_artefact(path: Path, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Write tensors and provenance; see ``harness.defenses.artefact.write``."""
    from harness.defenses import artefact

    artefact.write(path, tensors, provenance)


def files(params: Mapping[str, Any]) -> list[Path]:
    """Local files that ``params`` name; their content is part of the fingerprint.

    Published weights, an image adapter and a user's lists of texts, at any depth. Weights of the hub carry
    their commit instead.

    Raises:
        UserError: weights of the hub that are not on this machine.
    """
    paths: list[Path] = []
    for key, value in params.items():
        if isinstance(value, Mapping):
            paths += files(value)
        elif key == "weights" and isinstance(value, str) and value.startswith(HUB):
            intact.require(locate(value), "weights of a defense,")
        elif key == "weights" and isinstance(value, str):
            paths += _weight_files(Path(value).expanduser())
        elif key in _FILES and isinstance(value, str):
            paths.append(locate(value) if value.startswith(HUB) else Path(value).expanduser())
    for path in paths:
        intact.require(path, "weights or texts of a defense,")
    return paths


def _weight_files(path: Path) -> list[Path]:
    """Every file that weights at ``path`` are read from; a path where nothing is, as it is."""
    from harness.defenses import formats

    if not path.exists():
        return [path]
    return formats.weight_files(path) + ([path] if path.suffix == ".json" else [])


def locate(weights: str) -> Path:
    """The local file of a card's ``weights``; nothing is downloaded.

    Args:
        weights: a file, an index of several, a folder, or ``hub:OWNER/REPO@COMMIT/PATH`` in Hugging Face's cache.

    Raises:
        UserError: not there (and how to get it), or a hub id without its commit.
    """
    if not weights.startswith(HUB):
        return Path(weights).expanduser()
    from harness.defenses import formats

    repo, commit, name = parse_hub_file(weights)

    def cached(name: str) -> Path:
        path = cached_file(repo, name, commit)
        if path is None:
            raise UserError(
                f"weights {repo} at {commit} are not on this machine; get them with "
                f"`hf download {repo} {name} --revision {commit}`"
            )
        return path

    path = cached(name)
    if path.suffix == ".json":
        folder = name.rpartition("/")[0]
        for shard in formats.shard_names(path):
            cached(f"{folder}/{shard}".removeprefix("/"))
    return path


def works(card: DefenseCard, backbone: BackboneCard) -> bool:
    """Whether ``card`` can be attached to ``backbone``. Nothing is imported or loaded."""
    needed = _needs(card.mechanism)
    return not needed or needed in backbone.offers


def require(card: DefenseCard, backbone: BackboneCard) -> None:
    """Refuse a defense on a backbone that it cannot change, and a card that its mechanism would refuse.

    Raises:
        UserError: with what it needs, or what is wrong with the card.
    """
    if not works(card, backbone):
        raise UserError(
            f"defense {card.name!r} does not work with backbone {backbone.name!r} ({backbone.pipeline}): "
            f"it {_NEEDED[_needs(card.mechanism)]}; `none` works with every backbone, and so do regenerators"
        )
    built = artefact_kind(card.mechanism) is not None
    if card.artefact != built:
        raise UserError(
            f"{show(card.path)}: mechanism {card.mechanism!r} has {'something' if built else 'nothing'} to build "
            f"before it runs: its card needs `artefact: {str(built).lower()}`"
        )
    if "PARAMS" in _find.constants(card.mechanism):
        _check(card)


def _check(card: DefenseCard) -> None:
    """Refuse a parameter that is unknown or bad in any edition, for any concept, or missing in both editions."""
    from harness.defenses.base import IncompleteError, parse

    model = _find.module(card.mechanism).PARAMS
    overlay = card.shapes.concepts if card.shapes is not None else {}
    own = ["any"] if card.concepts is None else list(card.concepts)
    for concept in dict.fromkeys([*own, *overlay]):
        editions = ("paper", "shapes") if card.concepts is None or concept in own else ("shapes",)
        where = f"--defense {card.name!r}" if card.changes else show(card.path)
        place = f"{where}: " + (f"concept {concept}: " if concept in (card.concepts or overlay) else "")
        incomplete: list[UserError] = []
        for edition in editions:
            try:
                parse(model, card.resolve(edition, concept))
            except IncompleteError as error:
                incomplete.append(error)
            except UserError as error:
                raise UserError(f"{place}{error}") from None
        if len(incomplete) == len(editions):
            raise UserError(f"{place}{incomplete[0]}")


def _published(module: ModuleType, path: Path, pipe: Any) -> dict[str, Tensor]:
    """Published weights as the module reads them, checked."""
    from harness.defenses import artefact

    if not hasattr(module, "read_weights"):
        return artefact.read(path, pipe.unet)
    tensors: dict[str, Tensor] = module.read_weights(path, pipe)
    _fit(module, tensors, pipe, str(path))
    return tensors


def _fit(module: ModuleType, tensors: Mapping[str, Tensor], pipe: Any, where: str) -> None:
    """Refuse tensors that are not those that the mechanism attaches to ``pipe``."""
    from harness.defenses import artefact

    if hasattr(module, "check_artefact"):
        module.check_artefact(tensors, pipe)
    elif module.ARTEFACT == "unet-delta":
        artefact.check(tensors, pipe.unet, where)


def _needs(mechanism: str) -> str:
    return str(_find.literal(mechanism, "NEEDS", "unet"))
