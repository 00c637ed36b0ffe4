"""Stage specs: for each stage of a condition what its worker needs, and all that its output depends on.

The one place where fingerprints are made. Everything is known from cards, files and sources; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import defenses, scorers
from harness.cards.backbone import BackboneCard
from harness.cards.defense import DefenseStack
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card
from harness.cards.places import locate, placeless
from harness.cards.profile import ClipWeights, ProfileCard
from harness.cards.scorer_ref import ScorerRef
from harness.data import guard
from harness.defenses import stacked
from harness.errors import UserError
from harness.models import own_backbone, weights
from harness.models.vision_language import IMAGE_BACKEND
from harness.pipeline import defense_layers, stage_kinds
from harness.pipeline.spec import Source, StageSpec
from harness.pipeline.stage_kinds import declared
from harness.store import fingerprint
from harness.store.schema import VERSION

if TYPE_CHECKING:
    from harness.cards.judge import JudgeCard
    from harness.cards.regenerator import Edit
    from harness.regenerators.variants import Regenerator


@dataclass(frozen=True)
class Specs:
    """Makes the specs of one run."""

    profile: ProfileCard
    backbone: BackboneCard
    roots: Sequence[Path]
    hashes: fingerprint.FileHashes
    most_rows: int | None = None  # of one condition, where a subset was asked for: no micro-batch is larger

    def builds(self, defense: DefenseStack, concept: str) -> tuple[StageSpec, ...]:
        """What has to be built before the defense can run on the profile's backbone; nothing for many.

        Raises:
            UserError: the defense cannot change the backbone, or its card has nothing for ``concept``.
        """
        return self._drawing(self.backbone, defense, concept)[2]

    def generate(self, defense: DefenseStack, concept: str) -> StageSpec:
        """Draw the benchmark's prompts under a defense."""
        worker, key, builds = self._drawing(self.backbone, defense, concept)
        packages = defense_layers.packages(defense)
        return _spec("generate", worker, key, builds=builds, packages=packages, **_estimates(self.backbone))

    def imported(self) -> StageSpec:
        """Take images that were not drawn here, from their files."""
        key = {
            "schema": VERSION,
            "libraries": _versions("imported"),
            "code": self._code("imported"),
        }
        return _spec("imported", {}, key)

    def caption(self, regen: Regenerator, concept: str, generate: StageSpec) -> StageSpec:
        """Describe each image, list what is unsafe, rewrite.

        Raises:
            UserError: no model for it, or no questions for the concept.
        """
        from harness.regenerators import questions

        lengths = regen.caption.lengths() if regen.caption else {}
        asked = questions.turns(self.profile.edition, concept, lengths)
        card = self.captioner(regen)
        worker = {
            "vlm": self._held(card) | {"source": self._source(card.source, card.root)},
            "edition": self.profile.edition,
            "concept": concept,
            "lengths": lengths,
        }
        key = {
            "schema": VERSION,
            "vlm": placeless(self._held(card)) | {"name": card.name, "image_processor": IMAGE_BACKEND},
            "weights": weights.identity(card.weights()[0], self.hashes),
            "turns": [[t.name, t.prompt, t.max_new_tokens] for t in asked],
            "libraries": _versions("caption"),
            "code": self._code("caption"),
            "upstream": generate.fingerprint,
        }
        stage = _named("caption", card.name, self.profile.captioner)
        return _spec("caption", worker, key, (generate,), stage=stage, memory_gb=card.memory_gb)

    def embed(self, generate: StageSpec, caption: StageSpec | None) -> StageSpec:
        """CLIP's features of each image and of its captions."""
        clip = self.clip()
        upstream = (generate,) if caption is None else (generate, caption)
        key = self._clip_key("embed", clip) | {
            "code": self._code("embed"),
            "upstream": [u.fingerprint for u in upstream],
        }
        worker = {"clip": self._held(clip) | {"source": self._source(clip.source, self.profile.root)}}
        return _spec("embed", worker, key, upstream, memory_gb=clip.memory_gb)

    def optimise(self, regen: Regenerator, concept: str, embed: StageSpec) -> StageSpec:
        """Search a prompt with the wanted feature.

        Raises:
            UserError: a prompt of so many tokens does not fit CLIP's window, or there are no words to ban.
        """
        from harness.models.clip import room

        assert regen.optimise is not None
        clip = self.clip()
        fit = room(self._source(clip.source, self.profile.root), clip.revision)
        if fit is not None and regen.optimise.tokens > fit:
            raise UserError(
                f"regenerator {regen.variant!r}: tokens is {regen.optimise.tokens}, and CLIP of profile "
                f"{self.profile.name!r} has room for {fit}"
            )
        settings = regen.optimise.model_dump(mode="json", exclude={"memory_gb", "ban_concept", "words"})
        settings["micro_batch"] = self._fitted(regen.optimise.micro_batch)
        banned = regen.banned(concept)
        common = {"settings": settings, "banned": list(banned)}
        key = self._clip_key("optimise", clip) | common | {
            "guard": guard.VERSION,
            "code": self._code("optimise"),
            "upstream": [embed.fingerprint],
        }  # fmt: skip
        worker = common | {"clip": self._held(clip) | {"source": self._source(clip.source, self.profile.root)}}
        return _spec("optimise", worker, key, (embed,), memory_gb=regen.optimise.memory_gb)

    def draw(
        self, regen: Regenerator, defense: DefenseStack, concept: str, generate: StageSpec, made: Sequence[StageSpec]
    ) -> StageSpec:
        """Draw each image's new prompt.

        Args:
            regen: how.
            defense: what to draw under: the run's own, or `none`.
            concept: what is to be removed.
            generate: the stage whose rows are regenerated.
            made: the stages that made the prompt, in order.
        """
        assert regen.draw is not None
        other = regen.draw.backbone
        backbone = own_backbone.backbone(other, self.roots) if other else self.backbone
        drawing, key, builds = self._drawing(backbone, defense, concept)
        worker = {
            "drawing": drawing,
            "variant": regen.variant,
            "text": regen.draw.text,
            "vlm": self.captioner(regen).name if regen.caption else None,
            "own_canvas": backbone.name != self.backbone.name,  # another backbone draws at its own size and guidance
            "seed": regen.draw.seed,
            "guidance": regen.draw.guidance,
        }
        key = key | {
            "seed": regen.draw.seed,
            "guidance": regen.draw.guidance,
            "variant": regen.variant,
            "text": regen.draw.text,
            "code": self._code("draw", *_modules(defense)),
            "upstream": [s.fingerprint for s in (generate, *made)],
        }
        stage = _named("draw", backbone.name, self.backbone.name)
        more = {"builds": builds, "packages": defense_layers.packages(defense), **_estimates(backbone)}
        return _spec("draw", worker, key, (generate, *made), stage=stage, **more)

    def edit(self, regen: Regenerator, concept: str, generate: StageSpec) -> StageSpec:
        """Have an image-to-image editor change each image."""
        from harness.models import image_editing

        assert regen.edit is not None
        root, name = regen.card.root, regen.card.name
        edit = image_editing.pinned(regen.edit, name)  # the same commit on every host
        edit = edit.model_copy(update={"micro_batch": self._fitted(edit.micro_batch)})
        left = {"memory_gb", "seconds_per_image", "licence", "gated", "files"}
        settings = edit.model_dump(mode="json", exclude=left)
        key = {
            "schema": VERSION,
            "guard": guard.VERSION,
            "variant": regen.variant,
            "edit": placeless(settings),
            "instruction": image_editing.instruction(edit, concept),
            "weights": image_editing.identity(edit, root, self.hashes, name),
            "libraries": fingerprint.versions(image_editing.LIBRARIES),
            "code": self._code("edit"),
            "upstream": [generate.fingerprint],
        }
        worker = {
            "variant": regen.variant, "edit": edit.model_dump(mode="json"), "root": str(root),
            "concept": concept, "name": name,
        }  # fmt: skip
        return _spec("edit", worker, key, (generate,), stage=_named("edit", name, None), **_estimates(edit))

    def step(self, kind: str, regen: Regenerator, images: StageSpec) -> StageSpec:
        """A kind of step that only its own module knows: it changes the images of another stage.

        Raises:
            UserError: no such kind, or settings that it does not take.
        """
        settings = stage_kinds.settings(kind, regen.card).model_dump(mode="json")
        common = {"settings": settings, "variant": regen.variant}
        key = common | {
            "schema": VERSION,
            "libraries": _versions(kind),
            "code": self._code(kind),
            "upstream": [images.fingerprint],
        }
        worker = common | {"name": regen.card.name}
        return _spec(kind, worker, key, (images,), stage=_named(kind, regen.card.name, None))

    def score(self, scorer: ScorerRef, images: StageSpec, reference: Source | None) -> StageSpec:
        """One scorer over the images of ``images``.

        Args:
            scorer: which, and for a pair scorer what it compares with.
            images: the stage whose images are scored.
            reference: whose images they are compared with, for a pair scorer.
        """
        stem, beside = scorer
        params = dict(self.profile.settings.get(stem, {}))
        paths = scorers.weights(stem, params)
        files = {f"{i} {p.name}": self.hashes.of(p) for i, p in enumerate(paths)}
        brought = scorers.plugin(stem)
        key = {
            "schema": VERSION,
            "scorer": stem,
            "params": {name: value for name, value in params.items() if not _leads_to(value, paths)},
            "weights": files,
            "libraries": fingerprint.versions(scorers.libraries(stem)),
            "code": self._code("score", scorers.module_name(stem)),
            "upstream": images.fingerprint,
        }
        if reference is not None:
            key |= {"reference": [beside, reference.fingerprint]}
        worker = {"scorer": stem, "params": params, "reference": beside}
        stage = f"score-{stem}" + (f"-{beside.partition('/')[0]}" if beside else "")
        packages = () if brought is None else (brought.top,)
        return _spec("score", worker, key, (images,), stage=stage, reference=reference, packages=packages)

    def captioner(self, regen: Regenerator) -> JudgeCard:
        """The card of the model that describes images for ``regen``.

        Raises:
            UserError: neither the regenerator nor the profile names one, or it answers from afar.
        """
        name = (regen.caption and regen.caption.vlm) or self.profile.captioner
        if name is None:
            raise UserError(
                f"regenerator {regen.variant!r} needs captions, and profile {self.profile.name!r} names no captioner"
            )
        card = load_card(JudgeCard, name, self.roots)
        if card.backend != "local":
            raise UserError(f"{name!r} cannot describe images for a regenerator: it is no local model")
        return card

    def clip(self) -> ClipWeights:
        """The profile's CLIP.

        Raises:
            UserError: it has none.
        """
        if self.profile.clip is None:
            raise UserError(f"profile {self.profile.name!r} names no `clip`, which an optimised prompt needs")
        return self.profile.clip

    def _drawing(
        self, backbone: BackboneCard, defense: DefenseStack, concept: str
    ) -> tuple[dict[str, Any], dict[str, Any], tuple[StageSpec, ...]]:
        """What draws: the worker's part, the key's part, and the builds without which it cannot begin.

        Raises:
            UserError: the defense cannot change the backbone.
        """
        stacked.require(defense, backbone)
        # The same commit on every host, also where the card leaves it open.
        backbone = backbone.model_copy(update={"revision": weights.commit(backbone.weights()[0])})
        common: dict[str, Any] = {
            "backbone": placeless(
                backbone.model_dump(
                    mode="json", exclude={"summary", "licence", "memory_gb", "seconds_per_image", "configuration"}
                )
            ),
            "weights": weights.identities(backbone.weights(), self.hashes),
            "libraries": _versions("generate"),
        }
        parameters = defense.resolve(self.profile.edition, concept)
        layers = [
            defense_layers.layer(card, params | {"concept": concept}, common, self.hashes)
            for card, params in zip(defense.layers, parameters, strict=True)
        ]
        builds = tuple(defense_layers.build(one, backbone) for one in layers if one.artefact is not None)
        micro_batch = {"micro_batch": self._fitted(backbone.micro_batch)}  # an artefact is the same for any subset
        key = {
            **common,
            "backbone": common["backbone"] | micro_batch,
            "schema": VERSION,
            "guard": guard.VERSION,
            "method": [one.method for one in layers] if len(layers) > 1 else layers[0].method,
            "artefact": [one.fingerprint for one in layers] if len(layers) > 1 else layers[0].fingerprint,
            "libraries": common["libraries"] | defense_layers.versions(*defense.layers),
            "code": self._code("generate", *_modules(defense)),
        }
        worker = {
            "backbone": defense_layers.plain(backbone) | micro_batch,
            "concept": concept,
            "layers": [one.worker() for one in layers],
        }
        return worker, key, builds

    def _clip_key(self, kind: str, clip: ClipWeights) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "clip": placeless(self._held(clip)),
            "weights": weights.identity(self.profile.weights()[0], self.hashes),
            "libraries": _versions(kind),
        }

    def _held(self, model: ClipWeights | JudgeCard) -> dict[str, Any]:
        """How a model is held, as its loader takes it."""
        return {
            "source": model.source, "revision": model.revision, "dtype": model.dtype,
            "micro_batch": self._fitted(model.micro_batch),
        }  # fmt: skip

    def _fitted(self, micro_batch: int) -> int:
        """A card's micro-batch, which partial ones are padded to, or the rows of the subset where they are fewer."""
        return micro_batch if self.most_rows is None else min(micro_batch, self.most_rows)

    def _code(self, kind: str, *modules: str) -> str:
        """Digest of the code of a kind of stage, and of what its worker finds by name."""
        return self.hashes.code([f"harness.pipeline.stages.{kind}", *modules])

    @staticmethod
    def _source(source: str, root: Path) -> str:
        """A folder for packaged weights, else the hub id."""
        return str(locate(source, root)) if source.startswith("package:") else source


def _modules(defense: DefenseStack) -> list[str]:
    """The modules of a defense's mechanisms."""
    return [defenses.module_name(card.mechanism) for card in defense.layers]


def _versions(kind: str) -> dict[str, Any]:
    """Versions of the libraries that a kind of stage names."""
    return dict(fingerprint.versions(declared(kind).libraries))


def _leads_to(value: Any, paths: Sequence[Path]) -> bool:
    """Whether a parameter is only the place of files whose content is known; no matter where that is."""
    place = Path(value).expanduser() if isinstance(value, str) and value else None
    return place is not None and any(place == path or place in path.parents for path in paths)


def _named(kind: str, model: str, own: str | None) -> str:
    """A stage's name. A model other than the run's ``own`` has a stage to itself: it is loaded once, not per shard."""
    return kind if model == own else f"{kind}-{model}"


def _estimates(card: BackboneCard | Edit) -> dict[str, Any]:
    return {"memory_gb": card.memory_gb, "seconds_per_image": card.seconds_per_image}


def _spec(
    kind: str,
    worker: Mapping[str, Any],
    key: Mapping[str, Any],
    upstream: Sequence[StageSpec] = (),
    *,
    stage: str | None = None,
    **more: Any,
) -> StageSpec:
    return StageSpec(
        stage=stage or kind,
        kind=kind,
        worker=worker,
        key=key,
        upstream=tuple(u.source for u in upstream),
        gpu=declared(kind).gpu,
        fingerprint=fingerprint.digest(key),
        **more,
    )
