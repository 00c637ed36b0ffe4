"""What a report's card lacks among the runs at hand, and the evaluations that give it.

    table -> cells without a number -> what this machine can compute (Evaluation), what it cannot (Unavailable), and
    what a judge or people have to answer (Question)

One evaluation covers all defenses that lack the same benchmarks, variants and scorers on one backbone. What a defense,
benchmark, regenerator or scorer lacks here is found from cards and files alone; no model is loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from harness import scorers
from harness.cards import overrides
from harness.cards.benchmark import BenchmarkCard
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.report import PEOPLE, ReportCard, Sought
from harness.cards.scorer_ref import ScorerRef
from harness.defenses import stacked
from harness.errors import UserError
from harness.metrics.comparison import BASE
from harness.pipeline import prerequisites
from harness.pipeline.request import BASELINE, Chosen, Places, Request
from harness.regenerators import variants
from harness.report.entry import Entry
from harness.report.run_cells import Run
from harness.report.verdict import rows_of


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run to make."""

    request: Request
    cells: int  # of the table that it gives

    def command(self, places: Places) -> str | None:
        """The same as a command line; null where ``harness eval`` has no option for it."""
        asked = self.request
        if asked.extra_scorers:
            return None
        words = ["harness", "eval", "--defense", ",".join(asked.defenses), "--bench", ",".join(asked.benches)]
        words += ["--profile", asked.profile, "--regen", ",".join(asked.regens or ("none",))]
        words += ["--backbone", asked.backbone] if asked.backbone else []
        words += ["--limit", str(asked.limit)] if asked.limit else []
        words += ["--cards", str(places.cards)] if places.cards else []
        return shlex.join([*words, "--store", str(places.store), "--out", str(places.out)])

    def by_defense(self) -> list[Evaluation]:
        """The same, a defense at a time."""
        return [replace(self, request=replace(self.request, defenses=(name,))) for name in self.request.defenses]


class Unavailable(NamedTuple):
    """Something that this machine cannot compute, and why."""

    what: str  # "defense gloce over p4d (nudity)"
    why: str
    cells: int


class Question(NamedTuple):
    """Answers that a judge or people have yet to give."""

    task: str
    by: str
    bench: str
    n: int | None  # rows that suffice
    methods: tuple[str, ...]  # DEFENSE/VARIANT


@dataclass(frozen=True, kw_only=True)
class Missing:
    """All that a table lacks."""

    evaluations: tuple[Evaluation, ...]
    unavailable: tuple[Unavailable, ...]
    questions: tuple[Question, ...]


class _Images(NamedTuple):
    """What has to be drawn and scored for one cell."""

    backbone: str
    defense: str
    bench: str
    variant: str
    scorer: str | None  # beside the profile's


def missing(
    card: ReportCard,
    profile_name: str,
    entries: Sequence[Entry],
    runs: Sequence[Run],
    places: Places,
    limit: int | None,
) -> Missing:
    """What the entries of a table lack.

    Args:
        card: the table's.
        profile_name: whose runs fill it.
        entries: of the table as it stands.
        runs: that it was filled from.
        places: where cards and benchmark files lie.
        limit: rows of each benchmark that suffice; None: all.

    Raises:
        UserError: a malformed card.
    """
    profile = load_card(ProfileCard, profile_name, places.roots)
    lacking = [entry.sought for entry in entries if entry.sought is not None and _lacks(entry, limit)]
    judged = [e for e in entries if e.sought is not None and e.sought.by is not None and _lacks(e, limit)]
    drawn = {(c.profile, c.backbone, c.defense, c.variant, c.bench) for run in runs for c in run.cells}
    wanted: dict[_Images, int] = {}
    for sought in lacking:
        identity = (profile_name, sought.backbone, sought.defense, sought.variant, sought.bench)
        if sought.by is None or identity not in drawn:
            for images in _images(sought, profile, places.roots):
                wanted[images] = wanted.get(images, 0) + 1
    available = _Availability(profile, places)
    reasons = {images: available.why_not(images) for images in wanted}
    able = {images: cells for images, cells in wanted.items() if reasons[images] is None}
    return Missing(
        evaluations=tuple(_evaluations(able, profile, limit)),
        unavailable=tuple(_unavailable({i: (str(why), wanted[i]) for i, why in reasons.items() if why is not None})),
        questions=tuple(_questions(card, judged)),
    )


def _lacks(entry: Entry, limit: int | None) -> bool:
    """Whether the cell has no number, or one of fewer rows than are asked for."""
    cell = entry.measured
    if cell is None:
        return True
    if cell.subset is None:
        return False
    total = int(cell.subset.partition("/")[2])
    return rows_of(cell) < (total if limit is None else min(limit, total))


def _images(sought: Sought, profile: ProfileCard, roots: Sequence[Path]) -> Iterator[_Images]:
    """What has to be there for a cell: its images, scored; of a win rate also those that they are compared with."""
    concept = load_card(BenchmarkCard, sought.bench, roots).concept
    usual = (*profile.scorers, *profile.concepts[concept].scorers) if concept in profile.concepts else profile.scorers
    scorer = None
    if sought.metric in ("mean", "rate") and sought.by is None:
        column = ScorerRef.parse(str(sought.of))
        stem = next((stem for stem in scorers.names() if column.stem in scorers.columns(stem)), column.stem)
        name = stem if column.reference is None else f"{stem}@{column.reference}"
        scorer = None if name in usual and sought.of in profile.means else name
    yield _Images(sought.backbone, sought.defense, sought.bench, sought.variant, scorer)
    if sought.against is not None:
        defense, _, variant = sought.against.partition("/")
        yield _Images(sought.backbone, defense, sought.bench, variant, None)


class _Availability:
    """Why images cannot be drawn or scored here; each thing is looked at once."""

    def __init__(self, profile: ProfileCard, places: Places) -> None:
        self._profile, self._places, self._roots = profile, places, places.roots
        self._known: dict[tuple[str, ...], str | None] = {}

    def why_not(self, images: _Images) -> str | None:
        """The first reason, or None."""
        concept = load_card(BenchmarkCard, images.bench, self._roots).concept
        checks: list[tuple[tuple[str, ...], Callable[[], list[str]]]] = [
            (("backbone", images.backbone), lambda: self._backbone(images.backbone)),
            (("bench", images.bench), lambda: self._bench(images.bench)),
            (("defense", images.defense, concept, images.backbone), lambda: self._defense(images, concept)),
            (("variant", images.variant, concept), lambda: self._variant(images.variant, concept)),
            (("scorers", concept, str(images.scorer)), lambda: self._scorers(concept, images.scorer)),
        ]
        for key, check in checks:
            if key not in self._known:
                self._known[key] = _first(check)
            if self._known[key] is not None:
                return self._known[key]
        return None

    def _backbone(self, name: str) -> list[str]:
        weights = overrides.backbone(name, self._roots).weights()
        return prerequisites.missing(weights, self._profile, self._places.data)

    def _bench(self, name: str) -> list[str]:
        return prerequisites.missing([load_card(BenchmarkCard, name, self._roots)], self._profile, self._places.data)

    def _defense(self, images: _Images, concept: str) -> list[str]:
        defense, edition = overrides.defense(images.defense, self._roots), self._profile.edition
        if not defense.declares(edition, concept):
            return [f"no card of it declares concept {concept!r} for the {edition} edition"]
        if not stacked.works(defense, overrides.backbone(images.backbone, self._roots)):
            return [f"it cannot be attached to backbone {images.backbone!r}"]
        return prerequisites.missing(defense.weights(edition, concept), self._profile, self._places.data)

    def _variant(self, name: str, concept: str) -> list[str]:
        if name == BASE:
            return []
        chosen = variants.choose([name], self._profile.edition, self._roots)
        if not all(regen.admits(self._profile.edition, concept) for regen in chosen):
            return [f"regenerator {name!r} has no questions to ask about concept {concept!r}"]
        undefended = overrides.defense(BASELINE, self._roots)
        backbone = overrides.backbone(self._profile.backbone, self._roots)
        alone = Chosen(self._profile, backbone, [], [], chosen, undefended, frozenset())
        request = Request(defenses=(), benches=(), profile=self._profile.name)
        needed = prerequisites.prerequisites(request, alone, self._roots)
        own = [one for one in needed if one not in backbone.weights()]
        return prerequisites.missing(own, self._profile, self._places.data)

    def _scorers(self, concept: str, extra: str | None) -> list[str]:
        usual = self._profile.measures(concept).scorers
        stems = [*usual, extra] if extra is not None else usual
        return prerequisites.missing([], self._profile, self._places.data, stems)


def _first(check: Callable[[], list[str]]) -> str | None:
    try:
        return next(iter(check()), None)
    except UserError as error:
        return str(error)


def _evaluations(wanted: dict[_Images, int], profile: ProfileCard, limit: int | None) -> Iterator[Evaluation]:
    """One request for all defenses that lack the same."""
    lacks: dict[tuple[str, str], dict[str, list[_Images]]] = {}
    for images in wanted:
        lacks.setdefault((images.backbone, images.defense), {}).setdefault(images.bench, []).append(images)
    groups: dict[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], list[tuple[str, int]]] = {}
    for (backbone, defense), by_bench in lacks.items():
        alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        for bench, of_bench in by_bench.items():
            regens = tuple(dict.fromkeys(i.variant for i in of_bench if i.variant != BASE))
            extra = tuple(dict.fromkeys(i.scorer for i in of_bench if i.scorer is not None))
            alike.setdefault((regens, extra), []).append(bench)
        for (regens, extra), benches in alike.items():
            cells = sum(wanted[i] for bench in benches for i in by_bench[bench])
            groups.setdefault((backbone, tuple(benches), regens, extra), []).append((defense, cells))
    for (backbone, benches_of_group, regens, extra), members in groups.items():
        yield Evaluation(
            request=Request(
                defenses=tuple(defense for defense, _ in members),
                benches=benches_of_group,
                profile=profile.name,
                backbone=None if backbone == profile.backbone else backbone,
                regens=regens or (variants.NONE,),
                limit=limit,
                extra_scorers=extra,
            ),
            cells=sum(cells for _, cells in members),
        )


def _unavailable(refused: dict[_Images, tuple[str, int]]) -> Iterator[Unavailable]:
    """Each reason once, with all that it stands in the way of."""
    by_reason: dict[str, list[tuple[_Images, int]]] = {}
    for images, (why, cells) in refused.items():
        by_reason.setdefault(why, []).append((images, cells))
    for why, members in by_reason.items():
        methods = dict.fromkeys(i.defense if i.variant == BASE else f"{i.defense} + {i.variant}" for i, _ in members)
        benches = dict.fromkeys(i.bench for i, _ in members)
        yield Unavailable(f"{', '.join(methods)} over {', '.join(benches)}", why, sum(cells for _, cells in members))


def _questions(card: ReportCard, judged: Iterable[Entry]) -> Iterator[Question]:
    """One question for all methods that are asked about in the same way."""
    by_task: dict[tuple[str, str, str, int | None], list[str]] = {}
    for entry in judged:
        sought = entry.sought
        assert sought is not None
        methods = by_task.setdefault((str(sought.of), str(sought.by), sought.bench, card.column(entry.column).n), [])
        methods += [name for name in (sought.against, f"{sought.defense}/{sought.variant}") if name is not None]
    for (task, by, bench, n), methods in by_task.items():
        yield Question(task, by, bench, n, tuple(dict.fromkeys(methods)))


def how_to_ask(question: Question, run: str, captioner: str | None) -> str:
    """The command that has a judge or people answer about a run's images.

    Args:
        question: what is open.
        run: folder of the run.
        captioner: the profile's, who describes images where captions are compared.
    """
    doing = ["export", run] if question.by == PEOPLE else ["ask", run, "--judge", question.by]
    words = ["harness", "judge", *doing, "--task", question.task, "--bench", question.bench]
    words += ["--n", str(question.n)] if question.n else []
    words += ["--methods", ",".join(question.methods)] if question.task == "faithful" else []
    words += ["--captioner", captioner] if question.task == "faithful" and captioner else []
    words += ["--out", f"{question.task}-{question.bench}.html"] if question.by == PEOPLE else []
    return shlex.join(words)
