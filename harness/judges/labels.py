"""Labels of single images, unsafe or not, by which a detector's rate is corrected: which are drawn, and what they say.

Drawn apart from the flagged and the unflagged images of every benchmark, defense and variant, over all scores
(``harness.metrics.labelling``). Who labels sees neither verdict nor score; both stand in the form's key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.cards.policy import PolicyCard
from harness.errors import UserError
from harness.judges.human_answers import majority
from harness.judges.images import Place, Row, StoredImages
from harness.judges.questions import Item
from harness.metrics.corrections import Correction, Group, both_flagged, correct
from harness.metrics.labelling import allocation, bands, spread
from harness.metrics.policies import margins, verdicts

BANDS = 3  # of scores, among the flagged and among the unflagged, in what is printed
_IDENTITY = ["bench", "concept", "row_id", "sample", "defense", "variant"]


class Scored(NamedTuple):
    """One image with a verdict."""

    row: Row
    place: Place
    flagged: bool
    band: int


Policies = Mapping[str, PolicyCard]  # by concept
_Scores = Sequence[tuple[Scored, float]]  # with how far the score lies above the threshold


class Drawn(NamedTuple):
    """What people are asked about, and what stands behind it."""

    items: list[Item]
    behind: list[Scored]  # of each item
    groups: list[Group]


def draw(
    scores: pa.Table, policies: Policies, images: StoredImages, methods: Sequence[Place], n: int, seed: int
) -> Drawn:
    """Images to label: ``n`` of every benchmark and method, in the run's order.

    Args:
        scores: scores.parquet of the run.
        policies: by concept; their verdicts part the images.
        images: of the run.
        methods: which to label; empty: all.
        n: labels of each group; all of its images where there are fewer.
        seed: of the drawing.

    Raises:
        UserError: no image has a verdict.
    """
    drawn = Drawn([], [], [])
    for bench in dict.fromkeys(row.bench for row in images.by_row):
        rows = scores.filter(pc.equal(scores["bench"], bench))
        by_method = {
            str(place): _scored(rows, policies, place)
            for place in (methods or images.places)
            if any(row.bench == bench for row in images.complete(place))
        }
        flags = {
            name: {(one.row.row_id, one.row.sample): one.flagged for one, _ in there}
            for name, there in by_method.items()
        }
        both = both_flagged(flags)
        for name, there in by_method.items():
            if there:
                drawn.groups.append(_group(bench, name, there, policies, both[name]))
                chosen = _chosen(there, n, f"{seed}\0{bench}\0{name}")
                drawn.behind.extend(chosen)
                drawn.items.extend(Item(one.row, None, one.place) for one in chosen)
    if not drawn.items:
        raise UserError("no image of the run has a verdict, so there is nothing to label")
    return drawn


def _scored(rows: pa.Table, policies: Policies, place: Place) -> list[tuple[Scored, float]]:
    """A method's images with a verdict, and how far above the threshold each is."""
    mine = rows.filter(pc.and_(pc.equal(rows["defense"], place.defense), pc.equal(rows["variant"], place.variant)))
    scored = []
    for concept in pc.unique(mine["concept"]).to_pylist():
        here = mine.filter(pc.equal(mine["concept"], concept))
        flags, above = verdicts(policies[concept], here).to_pylist(), margins(policies[concept], here)
        for line, flagged, margin in zip(here.select(_IDENTITY).to_pylist(), flags, above, strict=True):
            if flagged is not None:
                row = Row(line["row_id"], line["sample"], line["bench"], concept)
                scored.append((Scored(row, place, flagged, 0), float(margin)))
    return scored


def _group(bench: str, name: str, there: _Scores, policies: Policies, both: Mapping[str, int]) -> Group:
    concept = there[0][0].row.concept
    return Group(
        bench=bench, method=name, concept=concept, policy=policies[concept].name,
        flagged=sum(one.flagged for one, _ in there), n=len(there),
        prompts=len({one.row.row_id for one, _ in there}), both_flagged=both,
    )  # fmt: skip


def _chosen(there: _Scores, n: int, name: str) -> list[Scored]:
    """The images of a group to label, with their bands."""
    flagged = sum(one.flagged for one, _ in there)
    counts = allocation(flagged, len(there), n)
    drawn = []
    for side, count in ((True, counts.flagged), (False, counts.unflagged)):
        mine = [(i, margin) for i, (one, margin) in enumerate(there) if one.flagged == side]
        scores = np.array([margin for _, margin in mine])
        band = bands(scores, BANDS)
        seed = int.from_bytes(hashlib.sha256(f"{name}\0{side}".encode()).digest()[:8])
        drawn += [(mine[i][0], int(band[i])) for i in spread(scores, count, seed)]
    return [there[i][0]._replace(band=band) for i, band in sorted(drawn)]


def note(key: dict[str, Any], drawn: Drawn) -> None:
    """Write verdicts, bands and groups into a form's key, which is not handed out."""
    behind = {(one.row.row_id, one.row.sample, str(one.place)): one for one in drawn.behind}
    for entry in key["items"].values():
        one = behind[entry["row_id"], entry["sample"], entry["second"]]
        entry |= {"flagged": one.flagged, "band": one.band}
    key["groups"] = [vars(group) for group in drawn.groups]


def corrections(table: pa.Table, key: Mapping[str, Any]) -> list[Correction]:
    """Every group's correction, from what most raters say of each image.

    Args:
        table: answers, of ``human_answers.table``.
        key: of the form.
    """
    votes: dict[tuple[str, int, str], list[bool | None]] = {}
    for line in table.select(["row_id", "sample", "second", "verdict"]).to_pylist():
        votes.setdefault((line["row_id"], line["sample"], line["second"]), []).append(line["verdict"])
    corrected = []
    for group in (Group(**entry) for entry in key["groups"]):
        answers = [
            (item["flagged"], item["band"], majority(votes[item["row_id"], item["sample"], item["second"]]))
            for item in key["items"].values()
            if (item["bench"], item["second"]) == (group.bench, group.method)
        ]
        corrected.append(correct(group, answers, BANDS))
    return corrected
