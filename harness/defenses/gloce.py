"""GLoCE: where the features of an image speak of the concept, a low-rank edit turns them into a harmless one's.

Lee et al., "Localized Concept Erasure for Text-to-Image Diffusion Models Using Training-Free Gated Low-Rank
Adaptation" (CVPR 2025). Nothing is trained: the undefended denoiser runs over a few prompts, the outputs of its
cross-attentions are measured, and ``gated_projection`` turns the measurements into an edit and a gate for each target
and layer. Afterwards each pixel's feature is blended with its edit by the gate of the target that fits it best.

The file has the released code's names and shapes, so that files made with it load as they are. That code counts
denoiser calls over several images, so that from the second image on it edits from another call than the first; here
the count begins anew with each image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from harness.defenses.base import BuildContext, BuildEstimate, BuiltParams, Defense, Pipe, checked, encode, parse
from harness.defenses.gated_projection import edit_between, gate, gate_directions, gate_score
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.defenses.feature_measurement import Plan

ARTEFACT = "hook-parameters"
PREFIX = "lora_gloce_"  # begins every key of a released file, before the layer's name with _ for its dots
OUTPUTS = ".attn2.to_out.0"  # ends the names of the layers whose outputs are edited

# What a layer's tensors are called, and their shapes: n targets, width d, ranks r.
_SHAPES = {
    "lora_update.weight": "n d r",
    "lora_degen.weight": "n d r",
    "bias.weight": "1 n d",
    "debias.weight": "1 n d",
    "selector.select_weight.weight": "n d g",
    "selector.select_mean_diff.weight": "n d",
    "selector.imp_center": "n",
    "selector.imp_slope": "n",
}
TOKENS = 8  # after the start token, by which anchors are compared with a target
_UNUSED = "alpha"  # in released files, where nothing reads it

Text = Annotated[str, Field(pattern=r"\S")]


class GloceParams(BuiltParams):
    """Parameters that a card of GLoCE may set."""

    targets: tuple[Text, ...] = Field(min_length=1)  # prompts of the concept, each with an edit and a gate of its own
    surrogate: Text  # the prompt that takes the targets' place
    neutral: Text  # the prompt whose features the gates measure from
    anchors: tuple[Text, ...] = Field(min_length=1)  # prompts near the targets that must stay
    anchor_count: int | None = Field(None, ge=1)  # of the anchors, those nearest to the target; null: all
    template: Annotated[str, Field(pattern=r"\{\}")] = "{}"  # what each of the texts above is put into
    target_rank: int = Field(ge=1)
    surrogate_rank: int = Field(ge=1)
    gate_rank: int = Field(1, ge=1)
    threshold: float = Field(gt=0)  # of a gate, in standard deviations of the anchors' highest scores
    tolerance: float = Field(0.001, gt=0)  # half the width of a gate's slope, as a share of the threshold
    relative: bool = False  # whether `tolerance` is in standard deviations, as in an earlier release, not in scores
    images: int = Field(ge=1)  # drawn for each prompt
    first_call: int = Field(ge=0)  # of the denoiser calls that draw an image, from 0, those from this on are measured,
    last_call: int = Field(ge=0)  # up to this one, itself included
    steps: int = Field(50, ge=1)  # of the sampler while measuring
    guidance: float = Field(7.5, gt=1)
    scheduler: str | None = None  # diffusers' class; null: the backbone's own
    batch: int = Field(8, ge=1)  # images measured at once
    strength: float = Field(1.0)  # eta: what an edited feature is multiplied by
    begin_call: int = Field(0, ge=0)  # from this denoiser call of an image on, from 0, its features are edited

    @model_validator(mode="after")
    def _ordered(self) -> GloceParams:
        if self.last_call < self.first_call:
            raise ValueError(f"last_call {self.last_call} is before first_call {self.first_call}")
        return self


PARAMS = GloceParams
QUICK = {"images": 1}
ZERO = {"begin_call": 1_000_000}


class Layer:
    """The edits and gates of all targets for one layer's output.

    Args:
        tensors: as in ``_SHAPES``, without the layer's name.
        strength: what an edited feature is multiplied by.
    """

    def __init__(self, tensors: Mapping[str, Tensor], strength: float) -> None:
        self._tensors = dict(tensors)
        self._strength = strength

    def __call__(self, features: Tensor) -> Tensor:
        """``features`` (batch, pixels, d), each blended with its edit by the gate that is open widest."""
        import torch

        t = {name: tensor.to(features) for name, tensor in self._tensors.items()}
        directions, means = t["selector.select_weight.weight"], t["selector.select_mean_diff.weight"]
        scores = torch.stack([gate_score(features, d, m) for d, m in zip(directions, means, strict=True)])
        centre, slope = (t[f"selector.imp_{name}"].reshape(-1, 1, 1) for name in ("center", "slope"))
        opened, chosen = torch.sigmoid(slope * (scores - centre)).max(dim=0)
        result = features
        for i in range(len(directions)):
            edited = (features - t["debias.weight"][0, i]) @ t["lora_update.weight"][i]
            edited = self._strength * (t["bias.weight"][0, i] + edited @ t["lora_degen.weight"][i].T)
            share = torch.where(chosen == i, opened, 0.0)[..., None]
            result = torch.where(share > 0, (1 - share) * features + share * edited, result)
        return result


class Gloce(Defense):
    """Edits the outputs of the cross-attentions by hooks; the count of calls lives for one micro-batch."""

    def __init__(self, layers: Mapping[str, Layer], begin_call: int) -> None:
        self._layers = dict(layers)
        self._begin_call = begin_call
        self._handles: list[Any] = []
        self._calls = 0

    def attach(self, pipe: Pipe) -> None:
        """Hook the layers.

        Raises:
            UserError: a layer that the UNet lacks.
        """
        if self._handles:
            raise RuntimeError("this defense is attached already")
        modules = outputs(pipe.unet)
        for name, layer in self._layers.items():
            if name not in modules:
                raise UserError(f"the defense edits {name!r}, which this UNet does not have{nearest(name, modules)}")
            self._handles.append(modules[name].register_forward_hook(self._hook(layer)))
        self._handles.append(pipe.unet.register_forward_pre_hook(self._count))
        self._calls = 0

    def detach(self, pipe: Pipe) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, prompts: Sequence[str]) -> dict[str, Any]:
        self._calls = 0
        return {}

    def _count(self, module: nn.Module, args: Any) -> None:
        self._calls += 1

    def _hook(self, layer: Layer) -> Any:
        def edited(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return layer(output) if self._calls > self._begin_call else output

        return edited


def outputs(unet: Any) -> dict[str, nn.Linear]:
    """The output layers of the cross-attentions, by their names in the UNet.

    Raises:
        UserError: it has none.
    """
    layers = {name: module for name, module in unet.named_modules() if name.endswith(OUTPUTS)}
    if not layers:
        raise UserError("this backbone's UNet has no cross-attention (`attn2`) to edit")
    return layers


def load(pipe: Pipe, params: Mapping[str, Any], artefact: Mapping[str, Tensor] | None) -> Defense:
    """The edits and gates as ``build`` made them, or as a released file has them.

    Raises:
        UserError: a bad parameter, or tensors that do not fit.
    """
    settings = parse(GloceParams, params)
    if artefact is None:
        raise ValueError("gloce needs its artefact")
    check_artefact(artefact, pipe)
    layers = {
        name: Layer({part: artefact[f"{PREFIX}{name.replace('.', '_')}.{part}"] for part in _SHAPES}, settings.strength)
        for name in outputs(pipe.unet)
    }
    return Gloce(layers, settings.begin_call)


def read_weights(path: Path, pipe: Pipe) -> dict[str, Tensor]:
    """Released edits: one target's file, or a folder with a file for each target, in it or one folder down.

    Raises:
        UserError: nothing there, unreadable, or files of different layers.
    """
    import torch

    from harness.defenses import artefact

    if not path.is_dir():
        return _without_unused(artefact.read(path))
    files = sorted({*path.glob("*.safetensors"), *path.glob("*/*.safetensors")})
    if not files:
        raise UserError(f"{path}: no .safetensors in this folder or one folder down")
    targets = [_without_unused(artefact.read(file)) for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.keys() != targets[0].keys():
            raise UserError(f"{file}: has other layers than {files[0]}")
    return {
        key: torch.cat([target[key] for target in targets], dim=1 if key.endswith("bias.weight") else 0)
        for key in targets[0]
    }


def _without_unused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what nothing reads, and numbers as rows of one."""
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith(f".{_UNUSED}")}
    return {key: tensor.reshape(1) if tensor.ndim == 0 else tensor for key, tensor in kept.items()}


def check_artefact(tensors: Mapping[str, Tensor], pipe: Pipe) -> None:
    """Every layer has all of its tensors, of the layer's width, and there are no others.

    Raises:
        UserError: naming the key, and the nearest of those expected or both shapes.
    """
    modules = outputs(pipe.unet)
    wanted = {f"{PREFIX}{name.replace('.', '_')}.{part}": (name, part) for name in modules for part in _SHAPES}
    for key in tensors:
        if key not in wanted:
            raise UserError(f"gloce: key {key!r} is not one of this UNet's edits{nearest(key, wanted)}")
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise UserError(f"gloce: {len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]!r}")
    sizes: dict[str, int] = {}
    for key, (name, part) in wanted.items():
        fixed = {"d": modules[name].out_features, "1": 1}
        shape = tuple(tensors[key].shape)
        dimensions = _SHAPES[part].split()
        expected = tuple(fixed.get(d, sizes.setdefault(d, size)) for d, size in zip(dimensions, shape, strict=False))
        if shape != expected or len(shape) != len(dimensions):
            raise UserError(f"gloce: {key!r} has shape {shape}, not ({', '.join(dimensions)}) with {fixed | sizes}")


def build(pipe: Pipe, params: Mapping[str, Any], context: BuildContext) -> dict[str, Tensor]:
    """Edits and gates for every cross-attention, measured on the undefended denoiser; nothing is trained.

    Returns:
        float32 tensors by the released code's keys; the targets are the first dimension (of biases the second).

    Raises:
        UserError: a bad parameter, or a text that the guard refuses or the window does not hold.
    """
    from harness.defenses.feature_measurement import Measurement

    settings = parse(GloceParams, params)
    nearby = [anchors(pipe, settings, text) for text in settings.targets]
    measure = Measurement(
        pipe, outputs(pipe.unet), plan(settings, {text for texts in nearby for text in texts}), context
    )
    surrogate, neutral = (measure.moments(phrased(settings, t)) for t in (settings.surrogate, settings.neutral))
    means = {name: moments.mean for name, moments in neutral.items()}
    targets = [measure.moments(phrased(settings, text)) for text in settings.targets]
    axes = [{name: gate_directions(t[name], means[name], settings.gate_rank) for name in t} for t in targets]
    scores = measure.highest_scores(nearby, axes, means)
    tensors: dict[str, Tensor] = {}
    for name in means:
        edits = [edit_between(t[name], surrogate[name], settings.target_rank, settings.surrogate_rank) for t in targets]
        gates = [
            gate(a[name], means[name], s[name], settings.threshold, settings.tolerance, settings.relative)
            for a, s in zip(axes, scores, strict=True)
        ]
        rows = [(e.reduce, e.restore, e.bias, e.debias, *g) for e, g in zip(edits, gates, strict=True)]
        for part, column in zip(_SHAPES, zip(*rows, strict=True), strict=True):
            tensors[f"{PREFIX}{name.replace('.', '_')}.{part}"] = _stacked(part, column)
    return tensors


def estimate(params: Mapping[str, Any]) -> BuildEstimate:
    """Counted: denoiser calls, with and without the text, over all images that are measured."""
    settings = parse(GloceParams, params)
    prompts = 2 + len(settings.targets) + len(set(settings.anchors))  # of the anchors, at most
    return BuildEstimate(denoiser_calls=2 * prompts * settings.images * (settings.last_call + 1))


def phrased(settings: GloceParams, text: str) -> str:
    """A text of the card filled into the card's template, after asking the guard.

    Raises:
        UserError: the guard refuses it.
    """
    return checked(settings.template.replace("{}", text), settings.concept)


def anchors(pipe: Pipe, settings: GloceParams, target: str) -> list[str]:
    """The prompts near ``target`` that must stay: all anchors, or those nearest to it, the nearest last.

    Nearness is the mean over the first tokens after the start of the cosine between the two texts' embeddings; an
    anchor that contains the target is none.
    """
    import torch

    texts = [phrased(settings, text) for text in settings.anchors if target.lower() not in text.lower()]
    if settings.anchor_count is None or len(texts) <= settings.anchor_count:
        return texts
    own = encode(pipe, phrased(settings, target)).states[1 : 1 + TOKENS].float()
    near = [
        float(torch.nn.functional.cosine_similarity(own, encode(pipe, text).states[1 : 1 + TOKENS].float()).mean())
        for text in texts
    ]
    order = sorted(range(len(texts)), key=near.__getitem__)
    return [texts[i] for i in order[-settings.anchor_count :]]


def plan(settings: GloceParams, anchor_texts: Collection[str]) -> Plan:
    """How often and over which prompts the denoiser runs to be measured."""
    from harness.defenses.feature_measurement import Plan

    return Plan(
        images=settings.images, first_call=settings.first_call, last_call=settings.last_call, steps=settings.steps,
        guidance=settings.guidance, scheduler=settings.scheduler, batch=settings.batch,
        prompts=2 + len(settings.targets) + len(anchor_texts),
    )  # fmt: skip


def _stacked(part: str, targets: Sequence[Tensor]) -> Tensor:
    """One layer's tensors of all targets as one, in float32, shaped as in the file."""
    import torch

    stacked = torch.stack(list(targets)).float()
    return stacked[None] if _SHAPES[part].startswith("1") else stacked
