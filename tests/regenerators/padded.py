"""Prompt optimisation the long way, for comparison: one image, every position of the window, AdamW by its formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PaddedTower:
    """CLIP's text feature of ``[begin, slots, end, padding ...]``, through transformers' own layers.

    Args:
        model: a ``CLIPModel`` or ``CLIPTextModelWithProjection``.
        end: of the prompt; what follows it is token 0, as in the published code.
    """

    def __init__(self, model: Any, begin: int, end: int) -> None:
        config = getattr(model.config, "text_config", model.config)
        config._attn_implementation = "sdpa"  # "eager" takes its softmax in float32 whatever the weights
        self.text, self.projection, self.begin, self.end = model.text_model, model.text_projection, begin, end
        self.window = config.max_position_embeddings

    def __call__(self, slots: Tensor) -> Tensor:
        """(projection,) of slots (N, d)."""
        table = self.text.embeddings.token_embedding.weight
        count, padding = len(slots), self.window - len(slots) - 2
        row = torch.cat([table[[self.begin]], slots, table[[self.end]], table[[0] * padding]])[None]
        hidden = self.text.embeddings(inputs_embeds=row)
        hidden_from = torch.full((self.window, self.window), -torch.inf, dtype=slots.dtype).triu(1)[None, None]
        for layer in self.text.encoder.layers:
            hidden = layer(hidden, attention_mask=hidden_from)
        pooled: Tensor = self.projection(self.text.final_layer_norm(hidden)[0, count + 1])
        return pooled


def nearest(table: Tensor, vector: Tensor, allowed: list[int], metric: str) -> int:
    """The allowed token nearest to ``vector`` (d,), looking at one after the other."""
    best, found = -float("inf"), -1
    for i in allowed:
        token = table[i]
        score = float(token @ vector / (token.norm() * vector.norm())) if metric == "cosine" else 0.0
        if metric == "l2":
            score = -float((token - vector).square().sum())
        if score > best:
            best, found = score, i
    return found


def prompts(
    tower: PaddedTower, target: Tensor, start: list[int], allowed: list[int], metric: str, steps: int
) -> list[tuple[list[int], float]]:
    """The prompt (ids) of every step and its cosine with ``target`` (projection,), by the published loop (lr 0.5)."""
    lr, decay = 0.5, 0.1
    table = tower.text.embeddings.token_embedding.weight.detach()
    z = table[start].clone()
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    seen = []
    for step in range(1, steps + 1):
        ids = [nearest(table, row, allowed, metric) for row in z]
        slots = table[ids].clone().requires_grad_()
        feature = tower(slots)
        cosine = feature @ target / (feature.norm() * target.norm())
        (gradient,) = torch.autograd.grad(1 - cosine, slots)
        seen.append((ids, float(cosine.detach())))
        z = z * (1 - lr * decay)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        z = z - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return seen
