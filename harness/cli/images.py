"""``harness score`` and ``harness regen``: images that are there already, of a run or from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options, running

if TYPE_CHECKING:
    from harness.pipeline.evaluate import Finished
    from harness.pipeline.plan import Plan
    from harness.pipeline.request import Places, Request

_NAMED = 20  # images that were not written, in a line

Concept = Annotated[
    str | None, typer.Option("--concept", help="With --images: what is looked for in them, and removed: nudity, ...")
]

AddedScorers = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="Scorers to add, comma separated; a pair scorer with its reference: lpips@same/base. "
        "See `harness list scorers`.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("score", epilog=options.examples("harness score runs/none_i2p_shapes_1a2b3c4d --scorer nudenet"))(score)
    app.command("regen", epilog=options.examples("harness regen --images DIR --concept violence --save DIR-safer"))(
        regen
    )


def score(
    context: typer.Context,
    run: Annotated[Path | None, typer.Argument(help="Folder of a run.")] = None,
    scorer: AddedScorers = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Instead of a run: a folder or Parquet file of images.")
    ] = None,
    concept: Concept = None,
    profile: options.Profile = "paper",
    out: options.Out = options.OUT,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    executor: running.Executor = "ray",
    address: running.Address = None,
    max_errors: running.MaxErrors = "5%",
    quiet: running.Quiet = False,
    verbose: running.Verbose = False,
    json: options.Json = False,
) -> None:
    """Add a scorer to a run's stored images, or score images that were not drawn here; nothing is drawn.

    A run keeps its own profile and folder. It is refused where its images would first have to be drawn.
    """
    import dataclasses

    from harness.errors import UserError
    from harness.pipeline.evaluate import prepare
    from harness.pipeline.record import request_of, require_images
    from harness.pipeline.request import Request
    from harness.report.stored_run import read_record
    from harness.store.shards import Store

    if (run is None) == (images is None):
        raise UserError("name a run's folder, or images with --images: one of the two")
    wanted = options.split(scorer or "")
    _require_scorers(wanted, drawn_here=images is None)
    record = None
    if images is not None:
        request = Request(
            defenses=(), benches=(), profile=profile, concept=concept, regens=("none",), images=str(images.resolve())
        )
    else:
        assert run is not None
        if not wanted:
            raise UserError("--scorer: name what is to be added to the run; see `harness list scorers`")
        record = read_record(run)
        request = request_of(record)
        _require_the_runs_own(context, run, request)
        out = run.resolve().parent
    request = dataclasses.replace(request, extra_scorers=tuple(dict.fromkeys((*request.extra_scorers, *wanted))))
    places = options.places(store, out, data, cards)
    if record is not None:
        assert run is not None
        require_images(run, record, prepare(request, places), Store.open_existing(places.store))
    machine = running.Machine(num_gpus=0, executor=executor, address=address)
    done = running.run(request, places, machine, running.Manner(max_errors, json, quiet=quiet, verbose=verbose))
    for name in _unscored(done.plan, wanted):
        print(f"harness: --scorer {name}: no image of the run has that reference, so none is scored", file=sys.stderr)


def _require_scorers(wanted: Sequence[str], drawn_here: bool) -> None:
    """Refuse an unknown scorer or reference before anything is written.

    Raises:
        UserError: with the nearest name.
    """
    from harness import scorers
    from harness.cards.scorer_ref import ScorerRef
    from harness.errors import UserError, nearest

    for name in wanted:
        stem, reference = ScorerRef.parse(name)
        scorers.columns(stem)
        if reference is None:
            continue
        if reference not in scorers.REFERENCES:
            known = ", ".join(scorers.REFERENCES)
            near = nearest(reference, scorers.REFERENCES)
            raise UserError(f"--scorer {name}: no reference {reference!r}{near} (there are: {known})")
        if not drawn_here:
            raise UserError(f"--scorer {name}: images that were not drawn here have no {reference} to compare with")


def _require_the_runs_own(context: typer.Context, run: Path, request: Request) -> None:
    """Refuse on the command line what a run settles by itself.

    Raises:
        UserError: another profile or folder than the run's, or a concept.
    """
    from harness.errors import UserError

    own = {"profile": request.profile, "out": run.resolve().parent, "concept": None}
    for name, value in own.items():
        source = context.get_parameter_source(name)
        given = context.params[name]
        if source is None or source.name != "COMMANDLINE" or (given.resolve() if name == "out" else given) == value:
            continue
        whose = "goes with --images" if value is None else f"but {run} is of {name} {str(value)!r}"
        raise UserError(f"--{name} {str(given)!r} {whose}: a run keeps its own, leave --{name} out")


def _unscored(plan: Plan, wanted: Sequence[str]) -> list[str]:
    """Pair scorers of ``wanted`` that the run has nothing for, such as ``same/base`` where nothing is regenerated."""
    from harness.cards.scorer_ref import ScorerRef

    stages = [spec.worker for condition in plan.conditions for variant in condition.variants for spec in variant.scores]
    there = {str(ScorerRef(worker["scorer"], worker["reference"])) for worker in stages}
    return [name for name in wanted if ScorerRef.parse(name).reference is not None and name not in there]


def regen(
    images: Annotated[Path, typer.Option("--images", help="Folder or Parquet file of images.")],
    concept: Concept = None,
    regen: Annotated[
        str | None,
        typer.Option("--regen", "-r", help="Regenerators, comma separated. Default: the profile's, ReSafe."),
    ] = None,
    profile: options.Profile = "paper",
    backbone: options.Backbone = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write the new images here, a subfolder per regenerator."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N images, by name.")] = None,
    seed: options.Seed = None,
    out: options.Out = options.OUT,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    num_gpus: running.NumGpus = None,
    gpu_memory: running.GpuMemory = None,
    workers: running.Workers = None,
    executor: running.Executor = "ray",
    address: running.Address = None,
    max_errors: running.MaxErrors = "5%",
    quiet: running.Quiet = False,
    verbose: running.Verbose = False,
    json: options.Json = False,
) -> None:
    """Make safer images from images that were not drawn here, and score both.

    A file that cannot be read fails by itself: it is named, and all others are made and saved.
    """
    from harness.pipeline.request import Request
    from harness.store.files import require_writable

    request = Request(
        defenses=(),
        benches=(),
        profile=profile,
        backbone=backbone,
        concept=concept,
        regens=None if regen is None else options.split(regen),
        limit=limit,
        seed=seed,
        images=str(images.resolve()),
    )
    places = options.places(store, out, data, cards)
    machine = running.Machine(num_gpus, gpu_memory, workers, executor, address)
    manner = running.Manner(max_errors, json, quiet=quiet, verbose=verbose)
    if save is not None:
        require_writable(save, "--save", folder=True)

    def write_images(finished: Finished) -> None:
        if save is not None:
            _save(finished, places, save)

    running.run(request, places, machine, manner, write_images)


def _save(finished: Finished, places: Places, folder: Path) -> None:
    """Write the new images, and name those that there are none of."""
    from harness.pipeline.results import save_images

    count, lacking = save_images(finished.plan, places, folder)
    print(f"{count} images written to {folder}", file=sys.stderr)
    if lacking:
        shown = ", ".join(lacking[:_NAMED]) + (f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else "")
        print(f"harness: not written, since it failed or is excluded: {shown}", file=sys.stderr)
