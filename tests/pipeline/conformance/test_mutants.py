"""Mutants of our own mechanisms and scorers, each with one plausible mistake, and the rule that catches it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from harness.cards import overrides
from harness.cards.base import card_roots
from harness.defenses import base, denoiser, negative_prompt, safree, skip_attention, sld, uce
from harness.errors import RowError
from harness.pipeline.conformance import defenses, scorers
from harness.pipeline.conformance.rules import Finding, tried
from harness.pipeline.conformance.run import subject_of, trials
from harness.scorers import shapes_classifier, shapes_oracle, ssim

Patch = Callable[[pytest.MonkeyPatch], None]


def finding(name: str, rule: str) -> Finding:
    """What becomes of one rule."""
    (trial,) = trials(name, card_roots())
    rules, subject = subject_of(trial, card_roots())
    (said,) = tried([r for r in rules if r.name == rule], subject)
    return said


def a_layer_stays_edited(patch: pytest.MonkeyPatch) -> None:
    def detach(self: base.UnetDelta, pipe: Any) -> None:
        state = pipe.unet.state_dict()
        with torch.no_grad():
            for key in list(self._originals)[:-1]:
                state[key].copy_(self._originals[key])
        self._originals = {}

    patch.setattr(base.UnetDelta, "detach", detach)


def building_edits_in_place(patch: pytest.MonkeyPatch) -> None:
    plain = uce.build

    def build(pipe: Any, params: Mapping[str, Any], context: base.BuildContext) -> Any:
        edited = plain(pipe, params, context)
        with torch.no_grad():
            for key in list(edited)[:1]:
                pipe.unet.state_dict()[key].copy_(edited[key])
        return edited

    patch.setattr(uce, "build", build)


def building_draws_from_the_global_generator(patch: pytest.MonkeyPatch) -> None:
    plain = uce.build
    patch.setattr(
        uce, "build", lambda *given: {key: w + 1e-6 * torch.randn(w.shape) for key, w in plain(*given).items()}
    )


def erased_texts_are_not_put_to_the_guard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uce, "checked", lambda text, concept: text)


def erasing_nothing_erases(patch: pytest.MonkeyPatch) -> None:
    plain = uce.edited
    patch.setattr(uce, "edited", lambda *given: {key: 0.9 * w for key, w in plain(*given).items()})


def momentum_is_kept(patch: pytest.MonkeyPatch) -> None:
    def begin(self: sld.Sld, prompts: Sequence[str]) -> dict[str, Any]:
        self._calls = 0
        return denoiser.DenoiserDefense.begin(self, prompts)

    patch.setattr(sld.Sld, "begin", begin)


def images_share_a_correction(patch: pytest.MonkeyPatch) -> None:
    plain = sld.correction

    def correction(*given: Any) -> Any:
        gamma, momentum = plain(*given)
        return gamma.mean(0, keepdim=True).expand_as(gamma), momentum

    patch.setattr(sld, "correction", correction)


def noise_comes_from_the_global_generator(patch: pytest.MonkeyPatch) -> None:
    plain = sld.correction

    def correction(*given: Any) -> Any:
        gamma, momentum = plain(*given)
        return gamma + 0.01 * torch.randn(gamma.shape), momentum

    patch.setattr(sld, "correction", correction)


def a_correction_is_no_number(patch: pytest.MonkeyPatch) -> None:
    plain = sld.correction

    def correction(*given: Any) -> Any:
        gamma, momentum = plain(*given)
        return gamma / (gamma - gamma), momentum

    patch.setattr(sld, "correction", correction)


def the_warm_up_is_ignored(patch: pytest.MonkeyPatch) -> None:
    plain = sld.Sld._correct

    def correct(self: sld.Sld, predicted: sld.Predictions) -> Any:
        self._calls = 10**9
        return plain(self, predicted)

    patch.setattr(sld.Sld, "_correct", correct)


def a_failure_is_remembered(patch: pytest.MonkeyPatch) -> None:
    """The counter of calls is put back after a micro-batch, instead of before one."""

    def begin(self: sld.Sld, prompts: Sequence[str]) -> dict[str, Any]:
        if self._calls in (0, 7):  # PNDM makes one call more than there are steps
            self._calls, self._momentum = 0, None
        return denoiser.DenoiserDefense.begin(self, prompts)

    patch.setattr(sld.Sld, "begin", begin)


def hooks_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(skip_attention.SkipAttention, "remove", lambda self: None)


def the_wrapper_stays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(safree.Safree, "detach", lambda self, pipe: None)


def a_phrase_is_drawn_by_lot(patch: pytest.MonkeyPatch) -> None:
    def begin(self: negative_prompt.NegativePrompt, prompts: Sequence[str]) -> dict[str, Any]:
        return {"negative_prompt": [random.choice(self.text.split(", ")) for _ in prompts]}

    patch.setattr(negative_prompt.NegativePrompt, "begin", begin)


def a_blank_prompt_is_a_mistake(patch: pytest.MonkeyPatch) -> None:
    plain = negative_prompt.NegativePrompt.begin

    def begin(self: negative_prompt.NegativePrompt, prompts: Sequence[str]) -> dict[str, Any]:
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("no prompt")
        return plain(self, prompts)

    patch.setattr(negative_prompt.NegativePrompt, "begin", begin)


def it_draws_by_itself(patch: pytest.MonkeyPatch) -> None:
    """It looks at what the prompt would give, with a call of the pipeline that nobody put to the guard."""
    plain = negative_prompt.load

    def load(pipe: Any, params: Mapping[str, Any], artefact: Any) -> Any:
        made = plain(pipe, params, artefact)
        announce = made.begin

        def begin(prompts: Sequence[str]) -> dict[str, Any]:
            pipe(prompt="a look at what comes", num_inference_steps=1, output_type="latent")
            return announce(prompts)

        made.begin = begin
        return made

    patch.setattr(negative_prompt, "load", load)


DEFENSES: list[tuple[str, str, Patch]] = [
    ("uce", "detaching", a_layer_stays_edited),
    ("uce", "untouched", building_edits_in_place),
    ("uce", "building", building_draws_from_the_global_generator),
    ("uce", "guard", erased_texts_are_not_put_to_the_guard),
    ("uce", "zero", erasing_nothing_erases),
    ("sld-max", "memory", momentum_is_kept),
    ("sld-max", "batch-mates", images_share_a_correction),
    ("sld-max", "determinism", noise_comes_from_the_global_generator),
    ("sld-max", "degenerate", a_correction_is_no_number),
    ("sld-max", "zero", the_warm_up_is_ignored),
    ("sld-max", "errors", a_failure_is_remembered),
    ("safree", "detaching", hooks_stay),
    ("safree", "detaching", the_wrapper_stays),
    ("sd-np", "determinism", a_phrase_is_drawn_by_lot),
    ("sd-np", "degenerate", a_blank_prompt_is_a_mistake),
    ("sd-np", "guard", it_draws_by_itself),
]


# Second ones of a rule; the nightly has them.
NIGHTLY = {erasing_nothing_erases, noise_comes_from_the_global_generator, a_correction_is_no_number, hooks_stay,
           the_wrapper_stays, it_draws_by_itself}  # fmt: skip


def cases() -> list[Any]:
    """The mutants of defenses, by their names."""
    return [
        pytest.param(*case, id=case[2].__name__, marks=[pytest.mark.slow] if case[2] in NIGHTLY else [])
        for case in DEFENSES
    ]


@pytest.mark.parametrize(("name", "rule", "mutate"), cases())
def test_a_mistake_of_a_defense_is_caught_by_its_rule(
    name: str, rule: str, mutate: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    said = finding(name, rule)
    assert said.outcome == "fail", said
    assert said.detail


def a_score_depends_on_the_place(patch: pytest.MonkeyPatch) -> None:
    plain = shapes_classifier.ShapesClassifier._compute

    def compute(self: Any, batch: Any) -> Any:
        rows = plain(self, batch)
        return [{name: value + 1e-3 * place for name, value in row.items()} for place, row in enumerate(rows)]

    patch.setattr(shapes_classifier.ShapesClassifier, "_compute", compute)


def scores_are_centred_over_all_so_far(patch: pytest.MonkeyPatch) -> None:
    plain = shapes_oracle.ShapesOracle._read

    def read(self: Any, image: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + int(image.sum())
        return {**plain(self, image), "shapes_oracle_star": self.seen % 7}

    patch.setattr(shapes_oracle.ShapesOracle, "_read", read)


def the_image_is_normalised_in_place(patch: pytest.MonkeyPatch) -> None:
    plain = shapes_oracle.ShapesOracle._read

    def read(self: Any, image: Any) -> Any:
        image[image > 250] = 255
        image[0, 0] = 0
        return plain(self, image)

    patch.setattr(shapes_oracle.ShapesOracle, "_read", read)


def a_small_image_raises(patch: pytest.MonkeyPatch) -> None:
    def read(self: Any, image: Any) -> Any:
        return {"shapes_oracle_star": int(image[8, 8, 0] > 0)}

    patch.setattr(shapes_oracle.ShapesOracle, "_read", read)


def a_flat_image_has_no_number(patch: pytest.MonkeyPatch) -> None:
    plain = ssim.Ssim._row

    def row(self: Any, image: Any, reference: Any) -> Any:
        spread = float(image.std())
        return {**plain(self, image, reference), "ssim_grey": spread / spread if spread else float("nan")}

    patch.setattr(ssim.Ssim, "_row", row)


def one_bad_image_costs_all(patch: pytest.MonkeyPatch) -> None:
    def call(self: Any, images: Sequence[Any]) -> Any:
        if any(image.ndim != 3 for image in images):
            raise RowError("not-an-image")
        return {name: [0] * len(images) for name in shapes_oracle.COLUMNS} | {
            "shapes_oracle_error": [None] * len(images)
        }

    patch.setattr(shapes_oracle.ShapesOracle, "__call__", call)


def a_column_is_missing(patch: pytest.MonkeyPatch) -> None:
    plain = shapes_oracle.ShapesOracle.__call__

    def call(self: Any, images: Sequence[Any]) -> Any:
        return {name: v for name, v in plain(self, images).items() if name != "shapes_oracle_ring"}

    patch.setattr(shapes_oracle.ShapesOracle, "__call__", call)


def a_missing_reference_is_black(patch: pytest.MonkeyPatch) -> None:
    plain = ssim.Ssim.__call__

    def call(self: Any, images: Sequence[Any], references: Sequence[Any]) -> Any:
        return plain(self, images, [i * 0 if r is None else r for i, r in zip(images, references, strict=True)])

    patch.setattr(ssim.Ssim, "__call__", call)


def noise_is_added(patch: pytest.MonkeyPatch) -> None:
    plain = shapes_classifier.ShapesClassifier._compute

    def compute(self: Any, batch: Any) -> Any:
        return [{name: value + random.random() for name, value in row.items()} for row in plain(self, batch)]

    patch.setattr(shapes_classifier.ShapesClassifier, "_compute", compute)


def any_parameter_will_do(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shapes_oracle, "options", lambda stem, params, defaults: dict(params))


SCORERS: list[tuple[str, str, Patch]] = [
    ("shapes_classifier", "batch-mates", a_score_depends_on_the_place),
    ("shapes_oracle", "memory", scores_are_centred_over_all_so_far),
    ("shapes_oracle", "untouched", the_image_is_normalised_in_place),
    ("shapes_oracle", "degenerate", a_small_image_raises),
    ("ssim", "degenerate", a_flat_image_has_no_number),
    ("shapes_oracle", "errors", one_bad_image_costs_all),
    ("shapes_oracle", "columns", a_column_is_missing),
    ("ssim", "beside nothing", a_missing_reference_is_black),
    ("shapes_classifier", "determinism", noise_is_added),
    ("shapes_oracle", "parameters", any_parameter_will_do),
]


@pytest.mark.parametrize(("name", "rule", "mutate"), SCORERS, ids=[m.__name__ for *_, m in SCORERS])
def test_a_mistake_of_a_scorer_is_caught_by_its_rule(
    name: str, rule: str, mutate: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    said = finding(name, rule)
    assert said.outcome == "fail", said
    assert said.detail


def test_every_rule_that_can_be_broken_has_a_mutant() -> None:
    applies = {rule.name for rule in defenses.RULES} - {"parameters"}
    assert applies == {rule for _, rule, mutate in DEFENSES if mutate not in NIGHTLY}
    stated = {"detaching", "zero", "guard"}  # which say nothing of scorers
    assert {rule.name for rule in scorers.RULES} - stated == {rule for _, rule, _ in SCORERS}


def test_overrides_reach_the_subject() -> None:
    (trial,) = trials("sld-max:warmup=3", card_roots())
    _, subject = subject_of(trial, card_roots())
    assert isinstance(subject, defenses.DefenseSubject)
    assert subject.parts[0].params["warmup"] == 3
    assert overrides.defense("sld-max", card_roots()).layers[0].mechanism == "sld"
