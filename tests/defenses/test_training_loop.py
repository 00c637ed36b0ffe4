"""The training loop: it minimises, changes what it is given and nothing else, and does not mind where it is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.defenses.base import BuildContext, BuildStep
from harness.defenses.training import loop
from harness.errors import UserError

PLAN = loop.Training(phase="train", steps=12, seed=3, save_every=4, clip_norm=1.0)
OPTIMISERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.01),
}


class StoppedError(Exception):
    """Stands for a process that is killed."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)).train()


def trained(
    context: BuildContext, make: Any, plan: loop.Training = PLAN, wanted: Any = lambda name: True
) -> dict[str, torch.Tensor]:
    model = network()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        inputs = torch.randn(16, 4, generator=generator)
        return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    loop.train(plan, loop.only_trainable(model, wanted), make, loss, context)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("cut", [1, 4, 7, 11])
def test_a_build_cut_anywhere_gives_the_weights_of_one_that_was_not(tmp_path: Path, name: str, cut: int) -> None:
    def stop(step: BuildStep) -> None:
        if step.step == cut:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(BuildContext(folder=tmp_path, report=stop), OPTIMISERS[name])
    told: list[BuildStep] = []
    torch.manual_seed(99)  # nothing ambient counts
    resumed = trained(BuildContext(folder=tmp_path, report=told.append), OPTIMISERS[name])
    whole = trained(BuildContext(), OPTIMISERS[name])
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    assert [s.step for s in told] == list(range(cut - cut % PLAN.save_every + 1, PLAN.steps + 1))


def test_slow_steps_are_saved_before_their_number_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(step: BuildStep) -> None:
        if step.step == 3:
            raise StoppedError

    monkeypatch.setattr(loop, "SAVE_S", 0.0)  # so that every step is slow
    with pytest.raises(StoppedError):
        trained(BuildContext(folder=tmp_path, report=stop), OPTIMISERS["adamw"])
    told: list[BuildStep] = []
    resumed = trained(BuildContext(folder=tmp_path, report=told.append), OPTIMISERS["adamw"])
    whole = trained(BuildContext(), OPTIMISERS["adamw"])
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    assert [s.step for s in told] == list(range(4, PLAN.steps + 1))


def test_a_finished_phase_is_not_run_again(tmp_path: Path) -> None:
    first = trained(BuildContext(folder=tmp_path), OPTIMISERS["adamw"])
    told: list[BuildStep] = []
    again = trained(BuildContext(folder=tmp_path, report=told.append), OPTIMISERS["adamw"])
    assert told == []
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_the_loss_falls_and_each_step_is_told() -> None:
    told: list[BuildStep] = []
    trained(BuildContext(report=told.append), OPTIMISERS["adamw"], replace(PLAN, steps=150))
    losses = [s.loss for s in told if s.loss is not None]
    assert [s[:3] for s in told] == [("train", i + 1, 150) for i in range(150)]
    assert sum(losses[-20:]) < 0.25 * sum(losses[:20])


def test_without_steps_nothing_changes() -> None:
    before = network().state_dict()
    after = trained(BuildContext(), OPTIMISERS["adamw"], replace(PLAN, steps=0))
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_only_the_wanted_parameters_change() -> None:
    before = network().state_dict()
    after = trained(BuildContext(), OPTIMISERS["adamw"], wanted=lambda name: name.startswith("3."))
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"3.weight", "3.bias"}


def test_wanting_no_parameter_is_an_error_and_not_an_idle_build() -> None:
    with pytest.raises(UserError, match="none of the parameters"):
        loop.only_trainable(network(), lambda name: "attn2" in name)


def test_other_seeds_and_steps_draw_otherwise() -> None:
    one, other = (trained(BuildContext(), OPTIMISERS["adamw"], replace(PLAN, seed=s)) for s in (3, 4))
    assert not torch.equal(one["0.weight"], other["0.weight"])
    pairs = [(s, i) for s in range(5) for i in range(50)]
    first = {float(torch.rand((), dtype=torch.float64, generator=loop.step_generator(s, i))) for s, i in pairs}
    assert len(first) == len(pairs)


def test_the_gradient_is_clipped_over_all_parameters_together() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = loop.Training(phase="train", steps=1, clip_norm=0.5)
    loop.train(
        plan, dict(model.named_parameters()), lambda p: torch.optim.SGD(p, lr=1.0),
        lambda step, generator: 1e3 * model(torch.ones(1, 4)).sum(), BuildContext(),
    )  # fmt: skip
    moved = torch.cat([(v - before[k]).flatten() for k, v in model.state_dict().items()])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_build_by_name() -> None:
    model = network()
    with pytest.raises(UserError, match=r"diverged: its loss is nan at step 1 of 12 \(train\)"):
        loop.train(
            PLAN, dict(model.named_parameters()), OPTIMISERS["adamw"],
            lambda step, generator: model(torch.full((1, 4), float("nan"))).sum(), BuildContext(),
        )  # fmt: skip


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    trained(BuildContext(folder=tmp_path), OPTIMISERS["adamw"], wanted=lambda name: name.startswith("0."))
    with pytest.raises(UserError, match="checkpoint is of other parameters"):
        trained(BuildContext(folder=tmp_path), OPTIMISERS["adamw"])


def test_a_student_is_a_copy_in_float32_that_asks_for_nothing() -> None:
    teacher = network().half()
    student = loop.student_of(teacher)
    assert not student.training
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in student.parameters())
    assert all(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        next(student.parameters()).add_(1)
    assert not torch.equal(next(student.parameters()).half(), next(teacher.parameters()))


def test_frozen_networks_ask_again_afterwards_as_before() -> None:
    model = network()
    model[0].requires_grad_(False)
    with loop.frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_tensors_kept_in_the_builds_folder_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"latents": torch.full((2,), float(len(made)))}

    kept = [loop.cached(BuildContext(folder=tmp_path), "images", make)["latents"] for _ in range(2)]
    assert torch.equal(kept[0], kept[1])
    assert len(made) == 1
    loop.cached(BuildContext(), "images", make)
    assert len(made) == 2
