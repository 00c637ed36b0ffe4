"""Judge cards that ship, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cards.base import card_roots
from harness.cards.judge import JudgeCard
from harness.cards.load import card_names, load_card
from harness.cards.places import locate
from harness.errors import UserError

NAMES = card_names(JudgeCard, card_roots())


def test_the_judges_of_the_paper_are_there() -> None:
    assert NAMES == ["gpt-judge", "internvl3-8b", "llava-next-7b", "qwen2-vl-7b", "shapes-captioner", "shapes-judge"]


@pytest.mark.parametrize("name", NAMES)
def test_a_local_judge_is_pinned_and_whole(name: str) -> None:
    card = load_card(JudgeCard, name, card_roots())
    assert isinstance(card, JudgeCard)
    if card.backend == "shapes-oracle":
        assert card.weights() == ()
        return
    if card.backend == "openai":
        assert card.price is not None
        assert card.model is not None
        return
    assert set(card.params()) == {"source", "revision", "dtype", "micro_batch"}
    if card.source.startswith("package:"):
        assert (locate(card.source, card.root) / "config.json").is_file()
        return
    assert card.revision is not None
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= set(card.files)
    weights = sorted(f for f in card.files if f.endswith(".safetensors"))
    assert weights == [f"model-{i:05}-of-{len(weights):05}.safetensors" for i in range(1, len(weights) + 1)]


BASE = "summary: s\nlicence: none\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("backend: local\nsource: a/b\n", "revision"),
        ("backend: openai\nsource: a/b\nmodel: m\n", "base URL"),
        ("backend: openai\nsource: https://example.org/v1\n", "name of its model"),
        ("backend: remote\nsource: a/b\n", "backend"),
        ("backend: local\nsource: package:x\nunderstand: any\n", "did you mean 'understands'"),
        ("backend: openai\nsource: https://example.org\nmodel: m\nconcurrency: 1000\n", "concurrency"),
    ],
)
def test_a_wrong_card_says_what(tmp_path: Path, content: str, said: str) -> None:
    folder = tmp_path / "pipelines/judges"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(BASE + content)
    with pytest.raises(UserError, match=said) as raised:
        load_card(JudgeCard, "mine", [tmp_path])
    assert "mine.yaml:" in str(raised.value)
