"""What builds will cost, and how far they are, read from the progress files in the store."""

from __future__ import annotations

from harness.pipeline.plan import Plan
from harness.pipeline.spec import StageSpec
from harness.store.artefacts import ArtefactFolder, BuildProgress
from harness.store.shards import Store


def costs(made: Plan, store: Store) -> list[str]:
    """A line for each build that a plan still lacks, with its estimated cost; builds that take seconds are left out."""
    missing = (made.builds[i] for i in made.missing_builds(store))
    return [str(b.build) for b in missing if b.is_long]


def at_work(made: Plan, store: Store) -> list[tuple[StageSpec, BuildProgress]]:
    """The builds that have begun and are not finished, each with its last written progress."""
    folders = [(b, ArtefactFolder.of(store, b.fingerprint)) for b in made.builds]
    said = [(b, folder.progress()) for b, folder in folders if not folder.is_built]
    return [(b, progress) for b, progress in said if progress is not None]


def words(made: Plan, store: Store) -> list[str]:
    """A line for each build at work, such as ``esd/nudity: train 120 of 1000, loss 0.0312``."""
    return [f"{label(build)}: {_said(progress)}" for build, progress in at_work(made, store)]


def label(build: StageSpec) -> str:
    """A build's name: the defense and what it removes."""
    assert build.build is not None
    return f"{build.build.defense}/{build.build.concept}"


def _said(progress: BuildProgress) -> str:
    count = f" {progress.step} of {progress.steps}" if progress.steps else ""
    loss = "" if progress.loss is None else f", loss {progress.loss:.3g}"
    return f"{progress.phase}{count}{loss}"
