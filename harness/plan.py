"""From what was asked for to what has to be done: chains of stages over shards of rows. No model is loaded.

    request -> cards -> rows -> Chain(stages with fingerprints, shards) per defense and benchmark

A *shard* is a fixed group of rows, cut once, the same for every stage: the unit of scheduling,
storage and retry. A *stage* is one step with one model; its fingerprint says all it depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from harness import cards, defenses, fingerprint, guard, prompts, scorers
from harness.cards import BackboneCard, DatasetCard, DefenseCard, PolicyCard, ProfileCard
from harness.errors import UserError
from harness.schema import PROMPT, VERSION
from harness.store import Store

BASELINE = "none"
# Sources whose change makes an image another one; a defense adds its own modules.
_GENERATE_MODULES = (
    "harness.stages.generate",
    "harness.backbones",
    "harness.guard",
    "harness.scorers.degenerate",
    "harness.shapes.world",  # whose plain backgrounds are not degenerate
)
_GENERATE_LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "numpy")
_SCORE_MODULES = ("harness.stages.score", "harness.scorers")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person chose on the command line."""

    defenses: tuple[str, ...]
    benches: tuple[str, ...]
    profile: str = "paper"
    backbone: str | None = None  # the profile's
    concept: str | None = None  # the benchmark's
    limit: int | None = None
    ids: tuple[str, ...] = ()
    seed: int | None = None  # replaces every row's
    baseline: bool = True  # `none` beside, for comparison
    extra_scorers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of one chain: what a worker needs to know, and the key of its fingerprint."""

    stage: str  # folder in the store and place in the flow: "generate", "score-nudenet"
    kind: str  # module in harness.stages: "generate" or "score"
    worker: Mapping[str, Any]  # what the stage's load() takes; plain data
    key: Mapping[str, Any]  # everything the output depends on
    upstream: tuple[str, str] | None  # (stage, fingerprint) it reads from
    fingerprint: str


@dataclass(frozen=True)
class Shard:
    """A group of rows: its content key, and the rows with the identity of their chain."""

    key: str
    rows: pa.Table


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One defense over one benchmark."""

    defense: str
    bench: str
    concept: str  # the benchmark's: what is scored
    defended: str  # the defense's: the same unless --concept says otherwise
    total_rows: int  # of the benchmark, before --limit and --ids
    stages: tuple[StageSpec, ...]
    shards: tuple[Shard, ...]

    @property
    def num_rows(self) -> int:
        return sum(s.rows.num_rows for s in self.shards)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run will do."""

    request: Request
    profile: ProfileCard
    backbone: BackboneCard
    chains: tuple[Chain, ...]
    policies: Mapping[str, tuple[PolicyCard, ...]]  # by concept

    @property
    def name(self) -> str:
        """The run's folder: readable, and the same whenever the same pictures are asked for."""
        asked = "-".join(c for c in self.request.defenses if c != BASELINE) or BASELINE
        stem = f"{asked}_{'-'.join(self.request.benches)}_{self.profile.name}"[:80]
        pictures = [[c.bench, c.stages[0].fingerprint, [s.key for s in c.shards]] for c in self.chains]
        return f"{stem}_{fingerprint.digest(pictures)[:8]}"

    def stage_names(self) -> list[str]:
        """Names of all stages in the order in which a row meets them."""
        return list(dict.fromkeys(s.stage for c in self.chains for s in c.stages))

    def missing(self, store: Store) -> list[tuple[int, int]]:
        """(chain, shard) indices for which some stage's output is not in the store yet."""
        return [
            (c, s)
            for c, chain in enumerate(self.chains)
            for s, shard in enumerate(chain.shards)
            if not all(store.path(p.stage, p.fingerprint, shard.key).exists() for p in chain.stages)
        ]


def make(request: Request, roots: Sequence[Path], data: Path, hashes: fingerprint.FileHashes) -> Plan:
    """Resolve every name, read the prompts, cut the shards and fingerprint the stages.

    Args:
        data: folder where ``harness fetch`` puts benchmark files.

    Raises:
        UserError: an unknown name, a malformed card or file, nothing to do.
    """
    chosen = choose(request, roots)
    profile, backbone = chosen.profile, chosen.backbone
    builder = _Builder(request, profile, backbone, hashes)
    whole = {bench.name: prompts.read(bench, profile, backbone, data) for bench in chosen.benches}
    asked = prompts.restrict(pa.concat_tables(whole.values()), request.limit, list(request.ids) or None)
    chains: list[Chain] = []
    for bench in chosen.benches:
        rows = asked.filter(pc.equal(asked["bench"], bench.name)).combine_chunks()
        if rows.num_rows:  # --ids may name rows of some of the benchmarks only
            chains += builder.chains(bench, chosen.defenses, rows, whole[bench.name].num_rows)
    concepts = dict.fromkeys(c.concept for c in chains)
    policies = {c: tuple(cards.load("policy", p, roots) for p in profile.policies(c)) for c in concepts}
    return Plan(request=request, profile=profile, backbone=backbone, chains=tuple(chains), policies=policies)


class Chosen(NamedTuple):
    """The cards that a request names."""

    profile: ProfileCard
    backbone: BackboneCard
    benches: list[DatasetCard]
    defenses: list[DefenseCard]


def choose(request: Request, roots: Sequence[Path]) -> Chosen:
    """Load every card that ``request`` names; "all" means those the profile has an edition of.

    Raises:
        UserError: an unknown name or a malformed card.
    """
    profile = cards.load("profile", request.profile, roots)
    backbone = cards.load("backbone", request.backbone or profile.backbone, roots)
    benches = [cards.load("dataset", b, roots) for b in _names(request.benches, "dataset", roots)]
    if "all" in request.benches:
        benches = [b for b in benches if profile.edition in b.editions or b.name in request.benches]
    names = _names(request.defenses, "defense", roots)
    if request.baseline and BASELINE not in names:
        names = [BASELINE, *names]
    return Chosen(profile, backbone, benches, [cards.load("defense", d, roots) for d in names])


def _names(asked: Sequence[str], kind: cards.Kind, roots: Sequence[Path]) -> list[str]:
    """The names asked for, "all" spelt out, each once."""
    if not asked:
        raise UserError(f"no {kind} chosen (there are: {', '.join(cards.names(kind, roots))})")
    names = [n for a in asked for n in (cards.names(kind, roots) if a == "all" else [a])]
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Builder:
    request: Request
    profile: ProfileCard
    backbone: BackboneCard
    hashes: fingerprint.FileHashes

    def chains(
        self, bench: DatasetCard, defenses: Sequence[DefenseCard], rows: pa.Table, total: int
    ) -> Iterator[Chain]:
        if self.request.seed is not None:
            seeds = pa.array([self.request.seed] * rows.num_rows, pa.uint64())
            rows = rows.set_column(rows.column_names.index("seed"), "seed", seeds)
        for defense in defenses:
            # A method without concepts (`none`) is the same whatever it is asked to defend against.
            defended = bench.concept if defense.concepts is None else self.request.concept or bench.concept
            yield Chain(
                defense=defense.name,
                bench=bench.name,
                concept=bench.concept,
                defended=defended,
                total_rows=total,
                stages=tuple(self.stages(defense, defended, bench.concept)),
                shards=tuple(_shards(self._named(rows, defense.name), self.profile.shard_rows)),
            )

    def _named(self, rows: pa.Table, defense: str) -> pa.Table:
        """The rows with the columns that say which chain they belong to."""
        identity = {
            "profile": self.profile.name, "backbone": self.backbone.name, "defense": defense, "variant": "base"
        }  # fmt: skip
        rows = rows.select(PROMPT.names)
        for name, value in identity.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        return rows

    def stages(self, defense: DefenseCard, defended: str, concept: str) -> Iterator[StageSpec]:
        generate = self._generate(defense, defended)
        yield generate
        wanted = dict.fromkeys((*self.profile.measures(concept).scorers, *self.request.extra_scorers))
        for stem in wanted:
            yield self._score(stem, generate)

    def _generate(self, defense: DefenseCard, concept: str) -> StageSpec:
        params = defense.resolve(self.profile.edition, concept) | {"concept": concept}
        modules = defenses.modules(defense.mechanism)
        method = {"mechanism": defense.mechanism, "params": params, "files": self._files(params)}
        backbone = self.backbone.model_dump(
            mode="json", exclude={"summary", "licence", "memory_gb", "seconds_per_image"}
        )
        common = {
            "backbone": backbone,
            "weights": self._weights(),
            "libraries": fingerprint.versions(_GENERATE_LIBRARIES),
        }
        artefact = None
        if defense.artefact:
            built = {**common, "method": method, "code": fingerprint.code(modules)}
            artefact = {"key": built, "fingerprint": fingerprint.digest(built)}
        key = {
            **common,
            "schema": VERSION,
            "guard": guard.VERSION,
            "method": method,
            "artefact": artefact and artefact["fingerprint"],
            "code": fingerprint.code([*modules, *_GENERATE_MODULES]),
        }
        worker = {
            "backbone": self.backbone.model_dump(mode="json")
            | {"path": str(self.backbone.path), "root": str(self.backbone.root)},
            "method": method,
            "artefact": artefact,
        }
        return _spec("generate", "generate", worker, key, None)

    def _files(self, params: Mapping[str, Any]) -> dict[str, str]:
        """sha256 of every local file that a defense's parameters name."""
        paths = defenses.files(params)
        absent = [str(p) for p in paths if not p.is_file()]
        if absent:
            raise UserError(f"no file {absent[0]} (named in the parameters of a defense)")
        return {str(p): self.hashes.of(p) for p in paths}

    def _weights(self) -> Any:
        """What identifies the backbone's weights: the hub's revision, or each file's sha256."""
        if not self.backbone.source.startswith("package:"):
            return self.backbone.revision
        return self.hashes.of_folder(cards.locate(self.backbone.source, self.backbone.root))

    def _score(self, stem: str, generate: StageSpec) -> StageSpec:
        params = dict(self.profile.settings.get(stem, {}))
        weights = {p.name: self.hashes.of(p) for p in scorers.weights(stem, params)}
        key = {
            "schema": VERSION,
            "scorer": stem,
            "params": params,
            "weights": weights,
            "libraries": fingerprint.versions(scorers.libraries(stem)),
            "code": fingerprint.code([f"harness.scorers.{stem}", *scorers.modules(stem), *_SCORE_MODULES]),
            "upstream": generate.fingerprint,
        }
        worker = {"scorer": stem, "params": params}
        return _spec(f"score-{stem}", "score", worker, key, ("generate", generate.fingerprint))


def _spec(
    stage: str, kind: str, worker: Mapping[str, Any], key: Mapping[str, Any], upstream: tuple[str, str] | None
) -> StageSpec:
    return StageSpec(
        stage=stage, kind=kind, worker=worker, key=key, upstream=upstream, fingerprint=fingerprint.digest(key)
    )


def _shards(rows: pa.Table, size: int) -> Iterator[Shard]:
    """Cut ``rows`` into groups of ``size``; a shard's key is the hash of its members' inputs."""
    for start in range(0, rows.num_rows, size):
        part = rows.slice(start, size).combine_chunks()
        content = hashlib.sha256(repr(part.to_pylist()).encode()).hexdigest()
        yield Shard(content[: fingerprint.LENGTH], part)
