"""Before anything is sent: where it would go, what it would hold, its cost, and whether the user allowed it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from harness.cards.judge import JudgeCard, Price
from harness.errors import UserError
from harness.judges.answers import Question

MAX_COST = 5.0  # US dollars, where nothing else is said
ENCODING = 1  # of images as sent; raised when the way they are encoded changes

_CHARACTERS_PER_TOKEN = 3  # fewer than English has, so that the estimate errs upwards
_OVERHEAD_TOKENS = 16  # of a message around its content


class Endpoint(NamedTuple):
    """Where questions go; ``key`` never leaves this and the client."""

    url: str
    model: str
    key: str
    price: Price | None = None  # of this model at this address; null: not known

    @property
    def shown(self) -> str:
        """The address without user, password and query."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"

    def __repr__(self) -> str:
        return f"Endpoint({self.shown}, {self.model})"


class Estimate(NamedTuple):
    """Questions, images and tokens to be sent, and their price; ``dollars`` is None where that is not known."""

    questions: int
    images: int  # different ones
    input_tokens: int
    output_tokens: int
    dollars: float | None

    @property
    def cost(self) -> str:
        """The price in words."""
        return "at a price that is not known" if self.dollars is None else f"for about ${self.dollars:.4f}"


def endpoint(card: JudgeCard, environ: Mapping[str, str], price: Price | None = None) -> Endpoint:
    """The card's endpoint, each part replaced by OPENAI_BASE_URL, HARNESS_JUDGE_MODEL, OPENAI_API_KEY where set.

    The card's price is that of its own model at its own address, and says nothing of another; ``price`` holds anywhere.

    Raises:
        UserError: no key for the card's own address (a server of one's own may need none), or no proper address.
    """
    url = (environ.get("OPENAI_BASE_URL") or card.source).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("OPENAI_BASE_URL is no http(s) address")
    key = (environ.get("OPENAI_API_KEY") or "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError("OPENAI_API_KEY holds characters that no key has")
    if not key and url == card.source.rstrip("/"):
        raise UserError(
            f"judge {card.name}: set OPENAI_API_KEY to a key for {url}, or OPENAI_BASE_URL to another server"
        )
    model = environ.get("HARNESS_JUDGE_MODEL") or card.model or ""
    if price is None and (url, model) == (card.source.rstrip("/"), card.model):
        price = card.price
    return Endpoint(url, model, key or "none", price)


def encode(png: bytes, max_side: int | None) -> bytes:
    """The image as it is sent: RGB, its longer side at most ``max_side`` pixels, nothing but pixels in the file."""
    import numpy as np
    import PIL.Image

    with PIL.Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    if max_side is not None and max(image.size) > max_side:
        image.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    plain = PIL.Image.fromarray(np.asarray(image))  # without what the file said beside its pixels
    data = io.BytesIO()
    plain.save(data, format="PNG")
    return data.getvalue()


def estimate(card: JudgeCard, questions: Sequence[Question], price: Price | None) -> Estimate:
    """What asking would cost, from the sizes of the images and the lengths of the texts; sends nothing.

    StoredImages are counted by the card's rule, which another model may not share.
    """
    sizes: dict[str, int] = {}
    for image in {p.sha256: p for q in questions for p in q.images}.values():
        sizes[image.sha256] = _image_tokens(card, image.png())
    read = sum(
        _OVERHEAD_TOKENS + -(-len(q.prompt) // _CHARACTERS_PER_TOKEN) + sum(sizes[p.sha256] for p in q.images)
        for q in questions
    )
    written = sum(q.max_new_tokens for q in questions)
    return Estimate(len(questions), len(sizes), read, written, dollars(price, read, written))


def _image_tokens(card: JudgeCard, png: bytes) -> int:
    import PIL.Image

    if card.image_tokens is None:
        return 0
    with PIL.Image.open(io.BytesIO(png)) as opened:
        width, height = opened.size
    shrink = min(1.0, (card.max_side or max(width, height)) / max(width, height))
    return card.image_tokens.of(max(1, round(width * shrink)), max(1, round(height * shrink)))


def announcement(to: Endpoint, estimate: Estimate) -> str:
    """A sentence for people: how many questions and images would go to which address, at what price."""
    what = f"{estimate.questions} questions" + (f" with {estimate.images} images" if estimate.images else "")
    return f"{what} to {to.shown} (model {to.model}) {estimate.cost}"


def check(card: JudgeCard, to: Endpoint, estimate: Estimate, *, allow_images: bool, max_cost: float | None) -> float:
    """Refuse what the user did not allow, before anything is sent.

    Args:
        card: of the judge.
        to: where it would be sent.
        found: what it would take.
        allow_images: whether images may be sent.
        max_cost: US dollars; None: ``MAX_COST``, as far as the price is known.

    Returns:
        US dollars that may be spent; infinite where the price is not known and no cap was asked for.

    Raises:
        UserError: images without consent, a cost beyond the cap, or a cap that could not be kept; says what would go
            where, and what it would cost.
    """
    would = f"judge {card.name} would send {announcement(to, estimate)}"
    if estimate.images and not allow_images:
        raise UserError(f"{would}: images leave this machine only with --allow-remote-images")
    if estimate.dollars is None:
        if max_cost is None:
            return math.inf
        raise UserError(
            f"{would}, so that --max-cost {max_cost:g} could not be kept: nothing was sent; say the price with "
            "--price, or leave --max-cost out"
        )
    cap = MAX_COST if max_cost is None else max_cost
    if not estimate.dollars <= cap:
        raise UserError(f"{would}, more than --max-cost {cap:g}: nothing was sent; raise it, or ask less with --n")
    return cap


def identity(card: JudgeCard, to: Endpoint) -> dict[str, Any]:
    """What the answers depend on: the model, its server, and how images are sent."""
    return {
        "judge": card.name, "backend": card.backend, "url": to.shown, "model": to.model, "temperature": 0,
        "max_side": card.max_side, "encoding": ENCODING,
    }  # fmt: skip


def dollars(price: Price | None, input_tokens: int, output_tokens: int) -> float | None:
    """What that many tokens cost; None where the price is not known."""
    if price is None:
        return None
    return (input_tokens * price.input_per_million + output_tokens * price.output_per_million) / 1e6
