"""Search for tokens whose text features are a given target: Ring-A-Bell's method on this world's text encoder.

Tsai et al., "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?", ICLR 2024: a
concept's direction is the mean difference of text features over pairs of prompts with and without it
(equation 3); the target is the feature of a prompt plus ``eta`` times the direction; a genetic search
over K tokens minimises the squared distance to it (equation 4). As in the authors' code the feature is
the text encoder's last hidden states at every position.

It works on this world only: the encoder is the shapes world's, and ``Vocabulary`` takes no other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.shapes import world

if TYPE_CHECKING:
    from torch import Tensor

Ids = NDArray[np.int64]

WORD_END = "</w>"  # of byte-pair tokens that end a word
LARGEST = 2048  # tokens of a vocabulary; this world's has 661, CLIP's 49408


def letters(text: str) -> str:
    """Only the letters, lower case: what is spelt over spaces, digits and punctuation alike."""
    return re.sub(r"[^a-z]", "", text.lower())


def spells(text: str, words: Sequence[str]) -> bool:
    """Whether the letters of ``text``, read without a break, contain one of ``words``.

    >>> spells("st ar", ["star"]), spells("s-t a r r", ["star"]), spells("satr", ["star"])
    (True, True, False)
    """
    plain = letters(text)
    return any(word in plain for word in words)


@dataclass(frozen=True)
class Settings:
    """Size of the search. The authors': 200 prompts, 3000 generations, crossover 0.5, mutation 0.25."""

    population: int = 32
    generations: int = 48
    batch: int = 512  # prompts that the encoder sees at once


class Inversion(NamedTuple):
    """The best prompt of one search and its squared distance to the target."""

    text: str
    distance: float


class Frame(NamedTuple):
    """Where the searched tokens stand. ``rows`` (S, window): start, content, end and padding of S prompts.

    ``free`` (S, K) are the positions of the searched tokens in each row.
    """

    rows: Ids
    free: Ids


class Encoder:
    """The world's text encoder as its pipeline uses it.

    Args:
        tower: a transformers ``CLIPTextModel``.
        tokenizer: its ``CLIPTokenizer``.
    """

    def __init__(self, tower: Any, tokenizer: Any) -> None:
        self.tower, self.tokenizer = tower.eval(), tokenizer
        self.window = int(tokenizer.model_max_length)

    def ids(self, texts: Sequence[str]) -> Ids:
        """(B, window) token ids, padded and cut as the pipeline does."""
        padded = {"padding": "max_length", "truncation": True, "max_length": self.window}
        return np.asarray(self.tokenizer(list(texts), **padded).input_ids, dtype=np.int64)

    def states(self, ids: Ids, batch: int = 512) -> Tensor:
        """Last hidden states (B, window, width) of token ids."""
        with torch.inference_mode():
            starts = range(0, len(ids), batch)
            chunks = [self.tower(torch.from_numpy(ids[i : i + batch])).last_hidden_state for i in starts]
        return torch.cat(chunks)

    def features(self, texts: Sequence[str]) -> Tensor:
        """Last hidden states (B, window, width) of texts."""
        return self.states(self.ids(texts))

    def length(self, text: str) -> int:
        """How many tokens ``text`` takes, start and end not counted."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)


class Vocabulary:
    """The tokens that a search may use: lower-case printable ASCII, none that spells a banned word.

    Args:
        tokenizer: the world's.
        banned: words that no found prompt may spell, not even over spaces and punctuation.

    Raises:
        ValueError: a vocabulary larger than this world's could be.
    """

    def __init__(self, tokenizer: Any, banned: Sequence[str]) -> None:
        known: dict[str, int] = tokenizer.get_vocab()
        if len(known) > LARGEST:
            raise ValueError(
                f"a vocabulary of {len(known)} tokens is not the shapes world's; this search works on it only"
            )
        self.tokenizer, self.banned = tokenizer, tuple(banned)
        special = set(tokenizer.all_special_ids)
        self._text = {i: token.replace(WORD_END, " ") for token, i in known.items() if i not in special}
        printable = re.compile(r"[!-@\[-`a-z{-~]+ ?")
        self.ids: Ids = np.asarray(
            [i for i in sorted(self._text) if printable.fullmatch(self._text[i]) and not spells(self._text[i], banned)]
        )
        self.whole: Ids = np.asarray([i for i in self.ids if self._text[i].endswith(" ")])  # tokens that end a word

    def text(self, row: Sequence[int] | Ids) -> str:
        """The tokens' text, words apart."""
        return "".join(self._text[int(i)] for i in row).strip()

    def sound(self, rows: Sequence[Ids]) -> tuple[list[str], NDArray[np.bool_]]:
        """The rows' texts, and whether each is what the pipeline will read and spells nothing banned.

        A text is tokenised again: adjacent tokens may join up to another token, even to a banned word's.
        """
        texts = [self.text(row) for row in rows]
        again = self.tokenizer(texts, add_special_tokens=False).input_ids
        same = [
            back == row.tolist() and not spells(text, self.banned)
            for back, row, text in zip(again, rows, texts, strict=True)
        ]
        return texts, np.asarray(same, dtype=bool)


# ------------------------------------------------------------------------------ direction and frames


def concept_pairs(shape: str, count: int, name: str) -> Iterator[tuple[str, str]]:
    """``count`` pairs of sentences that differ in one word: ``shape`` (or a synonym) against a harmless shape."""
    rng = random.Random(f"concept-pairs-{name}")
    concepts = set(world.CONCEPT_SHAPE.values())
    harmless = [s for s in world.SHAPES if s not in concepts]
    while count:
        scene = world.sample_scene(rng, star_share=0.0)
        if not scene.objects or scene.shapes() & concepts:
            continue
        place, phrasing = rng.randrange(len(scene.objects)), rng.random()
        pair = []
        for choice in (shape, rng.choice(harmless)):
            objects = list(scene.objects)
            objects[place] = world.Object(choice, objects[place].colour)
            changed = world.Scene(tuple(objects), scene.relation, scene.background, scene.texture)
            pair.append(world.sentence(changed, random.Random(phrasing)))
        yield pair[0], pair[1]
        count -= 1


def direction(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """A concept's direction (window, width): the mean difference of features with and without it (equation 3)."""
    with_concept, without = zip(*pairs, strict=True)
    return (encoder.features(with_concept) - encoder.features(without)).mean(0)


def open_frame(encoder: Encoder, count: int, tokens: int) -> Frame:
    """Prompts that consist of searched tokens alone: start, ``tokens`` free positions, end and padding.

    Raises:
        ValueError: more tokens than the window holds.
    """
    return _frame(encoder, [[] for _ in range(count)], tokens, before=True)


def framed(encoder: Encoder, sentences: Sequence[str], tokens: int, before: bool) -> Frame:
    """Prompts with ``tokens`` searched tokens before or after each fixed sentence.

    Raises:
        ValueError: more tokens than the window holds.
    """
    fixed = encoder.tokenizer(list(sentences), add_special_tokens=False).input_ids
    return _frame(encoder, fixed, tokens, before)


def _frame(encoder: Encoder, fixed: Sequence[list[int]], tokens: int, before: bool) -> Frame:
    start, end = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    rows = np.full((len(fixed), encoder.window), end, dtype=np.int64)
    rows[:, 0] = start
    free = np.zeros((len(fixed), tokens), dtype=np.int64)
    for i, part in enumerate(fixed):
        if tokens + len(part) > encoder.window - 2:
            raise ValueError(f"{tokens} + {len(part)} tokens do not fit a window of {encoder.window}")
        at = tokens + 1 if before else 1
        rows[i, at : at + len(part)] = part
        free[i] = np.arange(tokens) + (1 if before else 1 + len(part))
    return Frame(rows, free)


# ------------------------------------------------------------------------------ the search


class _Search:
    """S searches side by side, so that the encoder sees full batches; each keeps a population of its own."""

    def __init__(
        self, encoder: Encoder, vocabulary: Vocabulary, frame: Frame, targets: Tensor, settings: Settings
    ) -> None:
        self.encoder, self.vocabulary, self.frame, self.targets = encoder, vocabulary, frame, targets
        self.settings = settings
        end = encoder.tokenizer.eos_token_id
        fixed = np.where(frame.rows != end, np.arange(frame.rows.shape[1]), 0).max(axis=1)
        last = np.maximum(frame.free.max(axis=1), fixed)
        self.content = [np.arange(1, stop + 1) for stop in last]  # positions of searched and fixed tokens

    def fill(self, search: Ids, tokens: Ids) -> Ids:
        """(N, window) rows of the given searches with ``tokens`` (N, K) in their free positions."""
        rows = self.frame.rows[search].copy()
        np.put_along_axis(rows, self.frame.free[search], tokens, axis=1)
        return rows

    def distances(self, search: Ids, tokens: Ids) -> NDArray[np.float64]:
        """Squared distance to the search's target (equation 4); infinite for a prompt that is not sound."""
        rows = self.fill(search, tokens)
        _, sound = self.vocabulary.sound([row[self.content[s]] for s, row in zip(search, rows, strict=True)])
        distances = np.full(len(rows), np.inf)
        size = self.settings.batch
        for part in np.array_split(np.flatnonzero(sound), max(1, -(-int(sound.sum()) // size))):
            if len(part):
                states = self.encoder.states(rows[part], size)
                distances[part] = ((states - self.targets[search[part]]) ** 2).sum((1, 2)).numpy()
        return distances


def search(
    encoder: Encoder, vocabulary: Vocabulary, frame: Frame, targets: Tensor, settings: Settings, seed: int
) -> list[Inversion]:
    """Search the frame's free tokens for the prompts whose features are nearest to the targets.

    Each generation keeps the better half and fills up with crossings of two of them at a random
    point, one token of each changed at random. The authors' population is six times as large and runs for
    sixty times as many generations, so here every child is mutated and parents are kept as they are.

    Args:
        encoder: the world's.
        vocabulary: tokens that may be used.
        frame: S prompts with K free positions each.
        targets: (S, window, width).
        settings: size of the search.
        seed: of everything random; same seed, same result.

    Returns:
        S prompts; a distance is infinite where no sound prompt was met.
    """
    rng = np.random.default_rng(seed)
    work = _Search(encoder, vocabulary, frame, targets, settings)
    count, tokens = frame.free.shape
    half = settings.population // 2
    shape = (count, settings.population - half)
    lines = np.arange(count)[:, None]
    searches = np.arange(count)
    population = rng.choice(vocabulary.whole, (count, settings.population, tokens))
    scores = work.distances(np.repeat(searches, settings.population), population.reshape(-1, tokens))
    scores = scores.reshape(count, settings.population)
    for _ in range(settings.generations):
        best = np.argsort(scores, axis=1, kind="stable")[:, :half]
        parents, kept = population[lines, best], scores[lines, best]
        first, second = rng.integers(half, size=shape), rng.integers(half, size=shape)
        point = rng.integers(tokens + 1, size=shape)
        left = np.arange(tokens) < point[..., None]
        children = np.where(left, parents[lines, first], parents[lines, second])
        place, value = rng.integers(tokens, size=shape), rng.choice(vocabulary.ids, shape)
        np.put_along_axis(children, place[..., None], value[..., None], axis=2)
        born = work.distances(np.repeat(searches, shape[1]), children.reshape(-1, tokens)).reshape(shape)
        population, scores = np.concatenate([parents, children], 1), np.concatenate([kept, born], 1)
    winners = np.argmin(scores, axis=1)
    rows = work.fill(searches, population[searches, winners])
    texts = [vocabulary.text(row[at]) for row, at in zip(rows, work.content, strict=True)]
    return [Inversion(text, float(d)) for text, d in zip(texts, scores[searches, winners], strict=True)]
