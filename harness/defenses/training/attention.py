"""Cross-attention of a denoiser during training: reading its maps, and keeping the gradient from the start token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def cross_attentions(unet: Any) -> dict[str, Any]:
    """Every cross-attention (``attn2``) by module name, in the UNet's order."""
    return {name: module for name, module in unet.named_modules() if name.endswith(".attn2")}


class _Recorder:
    """diffusers' plain attention, with the probabilities written out; they carry gradients."""

    def __init__(self, name: str, maps: dict[str, Tensor]) -> None:
        self._name, self._maps = name, maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(hidden_states))
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = map(attn.head_to_batch_dim, (query, key, value))
        probabilities = attn.get_attention_scores(query, key, mask)  # (batch x heads, pixels, tokens)
        self._maps[self._name] = probabilities.unflatten(0, (len(hidden_states), attn.heads))
        mixed = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        projected: Tensor = attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor
        return projected


@contextmanager
def recorded_attention(unet: Any) -> Iterator[dict[str, Tensor]]:
    """Keep the cross-attention maps of the last call of ``unet`` inside.

    Yields:
        module name to probabilities (batch, heads, pixels, tokens), pixels row by row; filled by each call.
    """
    maps: dict[str, Tensor] = {}
    processors = {name: module.processor for name, module in cross_attentions(unet).items()}
    try:
        for name, module in cross_attentions(unet).items():
            module.set_processor(_Recorder(name, maps))
        yield maps
    finally:
        for name, module in cross_attentions(unet).items():
            module.set_processor(processors[name])


@contextmanager
def detached_start(unet: Any) -> Iterator[None]:
    """Inside, no gradient flows through the start token's key and value of any cross-attention.

    Kumari et al., "Multi-Concept Customization" (CVPR 2023), whose code Concept Ablation builds on. Values do not
    change.
    """

    def detach(module: Any, arguments: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    linear = [layer for module in cross_attentions(unet).values() for layer in (module.to_k, module.to_v)]
    hooks = [layer.register_forward_hook(detach) for layer in linear]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
