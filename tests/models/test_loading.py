"""Models are whole or refused: tensors dropped, renamed, reshaped, left over, tied; files damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, LlavaForConditionalGeneration, PreTrainedModel, T5Config, T5EncoderModel
from transformers import modeling_utils as theirs

from harness import scorers
from harness.errors import TransientError, UserError, is_transient
from harness.models import clip, loading, vision_language
from tools.shapes import measure

Tensors = dict[str, torch.Tensor]
LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "clip": ("CLIPModel", lambda folder: clip.load({"source": str(folder)})),
    "captioner": ("LlavaForConditionalGeneration", lambda folder: vision_language.load({"source": str(folder)})),
    "classifier": (
        "ResNetForImageClassification", lambda folder: scorers.load("shapes_classifier", {"path": str(folder)})
    ),
}  # fmt: skip


def _changed(tmp_path: Path, name: str, change: Callable[[Tensors], Tensors]) -> Path:
    """The shapes world's own weights of that name, changed."""
    folder = tmp_path / name
    shutil.copytree(measure.WEIGHTS / name, folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def _less(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[1:])


def _renamed(tensors: Tensors) -> Tensors:
    return {f"wrong.{key}": value for key, value in tensors.items()}


def _reshaped(tensors: Tensors) -> Tensors:
    first = next(key for key, value in tensors.items() if value.ndim > 1)
    return {**tensors, first: torch.cat([tensors[first]] * 2)}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (_less, r"lack (1 tensor|2 tensors) of its"),  # one may be tied to another
        (_renamed, r"lack \d+ tensors of its"),
        (_reshaped, "in another shape"),
    ],
)
def test_weights_that_do_not_fill_their_model_are_refused(
    tmp_path: Path, name: str, change: Callable[[Tensors], Tensors], flaw: str
) -> None:
    """transformers would put random numbers there and go on."""
    kind, load = LOADERS[name]
    folder = _changed(tmp_path, name, change)
    with pytest.raises(UserError, match=flaw) as raised:
        load(folder)
    for said in (name, str(folder), kind, "such as '"):
        assert said in str(raised.value)


def test_layers_that_the_configuration_does_not_count_are_refused(tmp_path: Path) -> None:
    def deeper(tensors: Tensors) -> Tensors:
        more = {k.replace(".layers.0.", ".layers.7."): v.clone() for k, v in tensors.items() if "text_model" in k}
        return {**tensors, **more}

    with pytest.raises(UserError, match=r"hold \d+ tensors of layers that its CLIPModel does not have.*layers\.7\."):
        clip.load({"source": str(_changed(tmp_path, "clip", deeper))})


def test_what_another_model_s_head_left_over_does_no_harm(tmp_path: Path) -> None:
    """Published files of CLIP hold position ids, and files of a whole model are read for a part of it."""

    def more(tensors: Tensors) -> Tensors:
        ids = torch.arange(24)[None]
        return {**tensors, "text_model.embeddings.position_ids": ids, "classifier.weight": torch.ones(2, 2)}

    clip.load({"source": str(_changed(tmp_path, "clip", more))})


def test_tied_tensors_need_a_value_once(tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    model = T5EncoderModel(T5Config(**sizes))
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    assert len(kept) < len(model.state_dict())
    with loading.loading("a test", str(tmp_path)):
        found = T5EncoderModel.from_pretrained(tmp_path)
    assert torch.equal(found.encoder.embed_tokens.weight, model.shared.weight)
    save_file({k: v for k, v in kept.items() if k != "shared.weight"}, tmp_path / "model.safetensors", {"format": "pt"})
    with (
        pytest.raises(UserError, match=r"a test: .*lack .* of its T5EncoderModel, such as .*(shared|embed_tokens)"),
        loading.loading("a test", str(tmp_path)),
    ):
        T5EncoderModel.from_pretrained(tmp_path)


def _as_bin(tmp_path: Path) -> tuple[Path, Path]:
    """CLIP with its weights as torch saves them."""
    folder = tmp_path / "clip"
    shutil.copytree(measure.WEIGHTS / "clip", folder)
    whole = folder / "model.safetensors"
    torch.save(load_file(whole), folder / "pytorch_model.bin")
    whole.unlink()
    return folder, folder / "pytorch_model.bin"


class _Danger:
    """What a file must not be able to do."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def _hollow(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda file: file.write_bytes(b"\x80\x04\x95"),
        lambda file: file.write_bytes(os.urandom(5000)),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(pickle.dumps(_Danger())),
        _hollow,
        lambda file: torch.save([1, 2], file),
    ],
)
def test_a_damaged_file_is_one_clear_message(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder, file = _as_bin(tmp_path)
    damage(file)
    with pytest.raises(UserError, match="clip .*weights of .*clip are not on this machine or cannot be read") as raised:
        clip.load({"source": str(folder)})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_damaged_settings_are_one_clear_message(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(measure.WEIGHTS / "clip", folder)
    (folder / name).write_text('{"a": ')
    with pytest.raises(UserError, match="clip .*cannot be read"):
        clip.load({"source": str(folder)})


def test_a_file_that_is_not_safetensors_starts_no_talk_with_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks the hub to convert it, in a thread of its own, whatever `local_files_only` says."""
    folder, file = _as_bin(tmp_path)
    started: list[str] = []

    class Thread(threading.Thread):
        def start(self) -> None:
            started.append(self.name)

    def here(name: object, wanted: str, **_: Any) -> str | None:
        found = file.parent / wanted
        return str(found) if found.is_file() else None

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr(theirs, "is_offline_mode", lambda: False)
    monkeypatch.setattr(theirs, "cached_file", here)
    monkeypatch.setattr(theirs, "has_file", lambda *_, **__: False)
    monkeypatch.setattr(theirs, "Thread", Thread)
    config = CLIPModel.config_class.from_pretrained(folder)
    with loading.loading("a test", "openai/clip"):
        CLIPModel.from_pretrained("openai/clip", config=config, local_files_only=True)
    assert started == []
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


def test_what_may_pass_is_no_mistake_of_the_user_s() -> None:
    for error in (MemoryError(), TransientError("later"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)), loading.loading("a test", "x"):
            raise error


def test_memory_that_torch_really_cannot_have_is_known_as_memory() -> None:
    """On the CPU torch raises a RuntimeError like any other; where its words change, this tells."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_transient(refused.value)
    assert is_transient(torch.OutOfMemoryError("of a GPU, in whatever words"))
    assert not is_transient(RuntimeError("size mismatch"))


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    before = vars(PreTrainedModel)["from_pretrained"]
    with pytest.raises(UserError, match="no/such"):
        clip.load({"source": "no/such"})
    assert vars(PreTrainedModel)["from_pretrained"] is before
    with loading.loading("a test", "captioner"):
        model, report = LlavaForConditionalGeneration.from_pretrained(
            measure.WEIGHTS / "captioner", output_loading_info=True
        )
    assert not report["missing_keys"]
    assert json.loads((measure.WEIGHTS / "captioner/config.json").read_text())["model_type"] == model.config.model_type


def test_models_load_one_at_a_time_whatever_the_threads() -> None:
    """transformers turns off the tying of weights for the whole process while it loads."""
    before = PreTrainedModel.tie_weights
    failed: list[BaseException] = []

    def load() -> None:
        try:
            vision_language.load({"source": str(measure.WEIGHTS / "captioner")})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert PreTrainedModel.tie_weights is before
