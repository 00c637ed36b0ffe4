"""Models as transformers and diffusers load them: from this machine alone, and whole, or not at all.

Both fill a tensor that a file has no value for with random numbers, or leave it empty, pass over layers that the
configuration does not count, and go on with a warning. Every model of this project is loaded inside ``loading``,
which turns each of these cases, and whatever a damaged file makes their readers raise, into one ``UserError``.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.cards.places import PACKAGE
from harness.errors import UserError, is_transient

# What `loading` and transformers change for the time of loading belongs to the whole process, not to a thread.
_ALONE = threading.RLock()
_SHOWN = 3  # names of tensors in a message
_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"


def place(source: str) -> str:
    """``source`` as ``from_pretrained`` takes it: the folder of ``package:harness/...``; anything else unchanged."""
    if source.startswith("package:harness/"):
        return str(PACKAGE / source.removeprefix("package:harness/"))
    return source


@contextmanager
def loading(what: str, source: str, get: str = "", *, pipeline: bool = False) -> Iterator[None]:
    """A block to load models in; one is refused unless every tensor was in its file, in the right shape.

    Args:
        what: the part that needs them, as messages begin ("clip", "backbone sd-v1-4").
        source: where they come from, as the user named it.
        get: how to get what is not there.
        pipeline: whether parts of a pipeline of diffusers are loaded too.

    Raises:
        UserError: not on this machine, damaged, of another kind, or not whole.
    """
    from transformers import PreTrainedModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would draw over ours
    with ExitStack() as changed:
        changed.enter_context(_ALONE)
        changed.enter_context(_offline())
        changed.enter_context(_reporting(what, source, PreTrainedModel))
        if pipeline:
            from diffusers import ModelMixin
            from diffusers.utils import logging as beside

            beside.disable_progress_bar()
            changed.enter_context(_reporting(what, source, ModelMixin))
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # what a reader meets in a damaged file is of no fixed kind
            if is_transient(error):
                raise
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines and isinstance(error, OSError) else ": ".join((type(error).__name__, *lines[:1]))
            raise UserError(
                f"{what}: weights of {source} are not on this machine or cannot be read ({reason})"
                f"{f'; {get}' if get else ''}"
            ) from error


@contextmanager
def _reporting(what: str, source: str, base: Any) -> Iterator[None]:
    """Have every model of class ``base`` checked: the report is asked for that its library otherwise only warns of.

    diffusers passes no such wish on to the parts of a pipeline, so it is put where all of them come by.
    """
    plain = vars(base)["from_pretrained"]  # the classmethod, not yet bound to a class

    def reporting(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}  # else neither is named
        model, report = plain.__func__(cls, pretrained_model_name_or_path, *args, **options)
        _check(what, str(pretrained_model_name_or_path or source), model, report)
        return (model, report) if asked else model

    setattr(base, "from_pretrained", classmethod(reporting))  # noqa: B010 (a method, to mypy)
    try:
        yield
    finally:
        setattr(base, "from_pretrained", plain)  # noqa: B010


@contextmanager
def _offline() -> Iterator[None]:
    """Keep transformers from asking the hub, in a thread of its own, to convert a file that is not safetensors.

    It does so whatever ``local_files_only`` says.
    """
    before = os.environ.get(_CONVERSION)
    os.environ[_CONVERSION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONVERSION]
        else:
            os.environ[_CONVERSION] = before


def _check(what: str, source: str, model: Any, report: Mapping[str, Iterable[Any]]) -> None:
    """Raises: UserError unless every tensor of ``model`` had a value in its file, and every layer a place in it.

    Tied tensors, and those that the model's class says may be absent or left over, are in no report.
    """
    tensors = model.state_dict()
    shaped = [str(mismatched[0]) for mismatched in report.get("mismatched_keys", ())]
    lacking = sorted({*map(str, report.get("missing_keys", ())), *(k for k, v in tensors.items() if v.is_meta)})
    layers = {_layer(name) for name in tensors}
    beyond = sorted(name for name in map(str, report.get("unexpected_keys", ())) if _layer(name) in layers)
    whole = Path(source).parent / "model_index.json"  # of the pipeline whose part this is
    part = Path(source).name if whole.is_file() else type(model).__name__
    for names, flaw in (
        (lacking, "lack {} of its {}"),
        (sorted(shaped), "hold {} of its {} in another shape"),
        (beyond, "hold {} of layers that its {} does not have"),
    ):
        if names:
            tensor = f"{len(names)} tensors" if len(names) > 1 else "1 tensor"
            shown = ", ".join(map(repr, names[:_SHOWN]))
            raise UserError(
                f"{what}: the weights of {source} {flaw.format(tensor, part)}, such as {shown}: this is another "
                "model's file, or another version's names"
            )


def _layer(name: str) -> str:
    """A tensor's name whichever of its numbered layers it is of."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
