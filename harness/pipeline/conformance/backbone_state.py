"""All that a defense could leave behind in a backbone: every tensor bit for bit, hooks, replaced parts, settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = 3  # differences in a message
_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
_TORCH_OWN = {"_parameters", "_buffers", "_modules", *_HOOKS}


def snapshot(pipe: Any) -> dict[str, Any]:
    """The state of a diffusers pipeline, by the names of its parts; equal states have equal snapshots.

    A scheduler's timesteps are none of it: every call of the pipeline sets them anew.
    """
    state: dict[str, Any] = {f"{key} of the pipeline": _plain(v) for key, v in vars(pipe).items() if key[0] != "_"}
    for name, part in pipe.components.items():
        state[name] = type(part).__qualname__
        if hasattr(part, "named_modules"):
            for path, module in part.named_modules():
                state.update(_module(".".join(filter(None, (name, path))), module))
        elif hasattr(part, "config"):
            state[f"{name}.config"] = repr(sorted(dict(part.config).items(), key=lambda pair: str(pair[0])))
        elif hasattr(part, "model_max_length"):
            state[f"{name}.vocabulary"] = (len(part), part.model_max_length)
    return state


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """In what two snapshots differ, in a few words; None where they do not."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names:
        return None
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names)} of the backbone's parts differ: {shown}{', ...' if len(names) > _SHOWN else ''}"


def _module(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    """A module's own state, without that of the modules in it."""
    own = {key: _plain(value) for key, value in vars(module).items() if key not in _TORCH_OWN}
    yield f"{name} (settings)", (type(module).__qualname__, tuple(sorted(own.items(), key=lambda pair: pair[0])))
    yield f"{name} (hooks)", tuple(len(vars(module).get(hooks, ())) for hooks in _HOOKS)
    for kind in ("_parameters", "_buffers"):
        for key, tensor in vars(module)[kind].items():
            yield f"{name}.{key}", None if tensor is None else of_tensor(tensor)


def of_tensor(tensor: Any) -> tuple[Any, ...]:
    """A tensor's place, form and content; equal for tensors that are the same bit for bit."""
    import torch

    flat = tensor.detach().to("cpu").reshape(-1).contiguous()  # also of one number
    content = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    return str(tensor.dtype), tuple(tensor.shape), str(tensor.device), tensor.requires_grad, content


def _plain(value: Any) -> Any:
    """A plain value as it is; of anything else what it is."""
    return value if isinstance(value, _PLAIN) else type(value).__qualname__
