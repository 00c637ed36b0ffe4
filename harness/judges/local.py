"""Ask a vision-language model on this machine: several images in one question, or none, greedily."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness.cards.judge import JudgeCard
from harness.cards.places import is_path, placeless
from harness.errors import UserError
from harness.judges.answers import REFUSAL, Answers, Question, Reply
from harness.judges.tasks import refuses
from harness.models import weights
from harness.models.library_logs import silenced
from harness.models.vision_language import IMAGE_BACKEND, LIBRARIES, Captioner, Turn, load
from harness.store import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTION = Turn("caption", "Describe this image in a caption.", 128)  # ReSafe, Appendix D.1
CAPTION_VERSION = 1


def require_understanding(card: JudgeCard) -> None:
    """Raises: UserError if the model was trained for nothing but ReSafe's turns, and would answer at random."""
    if card.understands != "any":
        raise UserError(
            f"judge {card.name} only knows ReSafe's caption turns and cannot answer questions; "
            "name another with --judge (of the shapes world: shapes-judge), or ask people: `harness judge export`"
        )


def device() -> str:
    """The first GPU, else the processor."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Local:
    """A judge on this machine; the model is loaded when the first question comes."""

    def __init__(self, card: JudgeCard) -> None:
        self._card = card
        self._captioner: Captioner | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """See ``answers.Judge``."""
        card = self._card
        identity = weights.identity(card.weights()[0], fingerprint.FileHashes())
        model = placeless({"source": card.source})["source"]
        return {
            "judge": card.name, "backend": card.backend, "model": model, "weights": identity,
            "dtype": card.dtype, "micro_batch": card.micro_batch, "image_processor": IMAGE_BACKEND,
            "libraries": fingerprint.versions(LIBRARIES),
        }  # fmt: skip

    @silenced()
    def ask(self, questions: Sequence[Question], memory: Answers) -> None:
        """See ``answers.Judge``: questions with equally many images go together.

        Raises:
            UserError: the weights are not here, or the model understands no questions.
        """
        require_understanding(self._card)
        groups: dict[tuple[int, int], list[Question]] = {}
        for question in questions:
            groups.setdefault((len(question.images), question.max_new_tokens), []).append(question)
        for (_, most), group in groups.items():
            for start in range(0, len(group), self._card.micro_batch):
                batch = group[start : start + self._card.micro_batch]
                images = [[_open(p.png()) for p in q.images] for q in batch]
                texts = replies(self._model(), images, [q.prompt for q in batch], most)
                self._keep(batch, texts, memory)

    @silenced()
    def caption(self, questions: Sequence[Question], memory: Answers) -> None:
        """Describe the image of each question, by ReSafe's own turn: any captioner can."""
        for start in range(0, len(questions), self._card.micro_batch):
            batch = questions[start : start + self._card.micro_batch]
            answers = self._model().converse([_open(q.images[0].png()) for q in batch], [CAPTION])
            self._keep(batch, [said for (said,) in answers], memory)

    def _model(self) -> Captioner:
        if self._captioner is None:
            self._captioner = load(self._card.params(), device())
        return self._captioner

    def _keep(self, questions: Sequence[Question], texts: Sequence[str], memory: Answers) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for question, text in zip(questions, texts, strict=True):
            error = REFUSAL if refuses(text) else None
            memory.put(question, Reply(text=text, error=error, model=self._name, date=now))

    @property
    def _name(self) -> str:
        card = self._card
        if is_path(card.source):
            return card.name  # where a model lies is nobody's business
        return f"{card.source}@{card.revision}" if card.revision else card.source


def replies(
    captioner: Captioner, shown_images: Sequence[Sequence[Image]], prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """One greedy answer to each prompt about its images.

    A partial micro-batch is padded by repeating its last question, so that an answer does not depend on how many
    were asked.

    Args:
        captioner: the model.
        shown_images: for each prompt its images in the order shown; equally many each.
        prompts: at most the captioner's micro-batch.
        max_new_tokens: of an answer.
    """
    import torch

    missing = captioner.micro_batch - len(prompts)
    shown = [*shown_images, *[shown_images[-1]] * missing]
    asked = [*prompts, *[prompts[-1]] * missing]
    texts = [_turn(captioner, len(images), prompt) for images, prompt in zip(shown, asked, strict=True)]
    flat = [image for images in shown for image in images]
    inputs = captioner.processor(text=texts, images=flat or None, padding=True, return_tensors="pt")
    inputs = inputs.to(captioner.model.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(captioner.model.dtype)
    with torch.inference_mode():
        ids = captioner.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    new = ids[: len(prompts), inputs["input_ids"].shape[1] :]
    return [text.strip() for text in captioner.processor.batch_decode(new, skip_special_tokens=True)]


def _turn(captioner: Captioner, images: int, prompt: str) -> str:
    content = [*[{"type": "image"}] * images, {"type": "text", "text": prompt}]
    history = [{"role": "user", "content": content}]
    text: str = captioner.processor.apply_chat_template(history, add_generation_prompt=True, tokenize=False)
    return text


def _open(png: bytes) -> Image:
    import PIL.Image

    with PIL.Image.open(io.BytesIO(png)) as opened:
        return opened.convert("RGB")
