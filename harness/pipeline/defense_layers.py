"""The layers of a chosen defense: for each its parameters, and the artefact that must be built before it runs.

Known from cards, files and sources; no model is loaded. What the artefact depends on, and so its fingerprint, is the
backbone, the parameters, the mechanism's code and, where it learns from images, the code that draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness import defenses
from harness.cards.backbone import BackboneCard
from harness.cards.defense import DefenseCard, DefenseStack
from harness.data import guard
from harness.errors import UserError
from harness.models import weights
from harness.pipeline.spec import BuildCost, StageSpec
from harness.store import artefacts, fingerprint

# A student in float32 with its gradients and Adam's two moments, beside the frozen network and what drawing takes.
_TRAINING_MEMORY = 4
_COPIES_ON_DISK = 4  # of the denoiser in float32: a checkpoint's weights and moments, and the artefact
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One defense card, resolved for one concept on one backbone."""

    card: DefenseCard
    params: Mapping[str, Any]  # with ``concept``
    method: Mapping[str, Any]  # what of it an image depends on
    artefact: Mapping[str, Any] | None  # what the artefact depends on; None: nothing is built
    fingerprint: str | None  # of the artefact

    def worker(self) -> dict[str, Any]:
        """What a worker needs to build and load the layer, as plain data."""
        artefact = None
        if self.artefact is not None:
            artefact = {
                "key": self.artefact,
                "fingerprint": self.fingerprint,
                "kind": defenses.artefact_kind(self.card.mechanism),
            }
        return {"mechanism": self.card.mechanism, "params": dict(self.params), "artefact": artefact}


def layer(
    card: DefenseCard, params: Mapping[str, Any], common: Mapping[str, Any], hashes: fingerprint.FileHashes
) -> Layer:
    """The layer of a defense card: its resolved parameters and the key of its fingerprint.

    Args:
        card: the defense.
        params: resolved, with ``concept``.
        common: the part of the key that identifies the backbone.
        hashes: of files that the parameters name, and of code.

    Raises:
        UserError: a file that is not there.
    """
    files = _files(params, hashes)
    # Where a file lies is the worker's business; what it holds is the result's.
    known = {name: value for name, value in params.items() if name not in files}
    method = {"mechanism": card.mechanism, "params": known, "files": files}
    if not card.artefact:
        return Layer(card=card, params=params, method=method, artefact=None, fingerprint=None)
    modules = [defenses.module_name(card.mechanism)]
    libraries = common["libraries"] | versions(card)
    built = {**common, "libraries": libraries, "method": method, "guard": guard.VERSION}
    if defenses.estimate(card.mechanism, params).images:
        modules.append("harness.pipeline.stages.training_images")
    built["code"] = hashes.code(modules)
    return Layer(card=card, params=params, method=method, artefact=built, fingerprint=fingerprint.digest(built))


def versions(*cards: DefenseCard) -> dict[str, Any]:
    """Versions of what the cards' mechanisms depend on, beside what draws: a package that brings one is among it."""
    return fingerprint.versions(name for card in cards for name in defenses.libraries(card.mechanism))


def packages(stack: DefenseStack) -> tuple[str, ...]:
    """Import packages beside ours that the mechanisms of a defense lie in."""
    brought = (defenses.plugin(card.mechanism) for card in stack.layers)
    return tuple(dict.fromkeys(plugin.top for plugin in brought if plugin is not None))


def build(one: Layer, backbone: BackboneCard) -> StageSpec:
    """The build of a layer's artefact, under the artefact's own fingerprint."""
    assert one.artefact is not None
    assert one.fingerprint is not None
    return StageSpec(
        stage=artefacts.STAGE,
        kind="build",
        worker={"backbone": plain(backbone), "layer": one.worker()},
        key=one.artefact,
        gpu=True,
        packages=packages(DefenseStack((one.card,))),
        fingerprint=one.fingerprint,
        build=cost(one, backbone),
    )


def plain(backbone: BackboneCard) -> dict[str, Any]:
    """The backbone's card as plain data that can be sent to workers."""
    return backbone.model_dump(mode="json") | {"path": str(backbone.path), "root": str(backbone.root)}


def cost(one: Layer, backbone: BackboneCard) -> BuildCost:
    """What building a layer's artefact takes."""
    estimate = defenses.estimate(one.card.mechanism, one.params)
    calls_per_image = backbone.steps * (2 if backbone.guidance > 1 else 1)
    images = estimate.images + estimate.denoiser_calls / calls_per_image
    trains = bool(estimate.steps)
    return BuildCost(
        defense=one.card.name,
        concept=str(one.params["concept"]),
        kind=str(defenses.artefact_kind(one.card.mechanism)),
        steps=estimate.steps,
        images=estimate.images,
        seconds=images * backbone.seconds_per_image,
        memory_gb=backbone.memory_gb * (_TRAINING_MEMORY if trains else 1),
        disk_mb=round(_denoiser_mb(backbone) * (_COPIES_ON_DISK if trains else 1), 1),
    )


def _denoiser_mb(backbone: BackboneCard) -> float:
    """MB of the backbone's denoiser in float32, by its files on this machine; 0 where they are not known."""
    files = [p for p in weights.files(backbone.weights()[0]) if p.parent.name in ("unet", "transformer")]
    sizes = {p: p.stat().st_size for p in files if p.suffix == ".safetensors"}
    half = sum(size for p, size in sizes.items() if ".fp16." in p.name)
    return (2 * half or sum(sizes.values())) / _MB


def _files(params: Mapping[str, Any], hashes: fingerprint.FileHashes) -> dict[str, str]:
    """sha256 of every local file that a defense's parameters name, by the parameter."""
    digests = {}
    for name, value in params.items():
        for path in defenses.files({name: value}):
            if not path.is_file():
                raise UserError(f"no file {path} (named in the parameters of a defense)")
            digests[name] = hashes.of(path)
    return digests
