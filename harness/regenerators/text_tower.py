"""CLIP's text feature of ``[begin, N slots, end]`` from the slots' embeddings, without computing what cannot affect it.

CLIP's text encoder is causal and pools at the end token, so of its 77 positions only the first N + 2 reach the feature.
Of these, two savings more are exact: nothing precedes the begin token, so its keys and values are constants of each
layer; and after the last layer only the end token is read, so there only it needs a query and an MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_QUICK = 1.702  # quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702
_LEGACY_END = 2  # a wrong end token in the configurations of OpenAI's CLIPs: transformers then pools at the highest id


class _KeyValue(NamedTuple):
    """The begin token's, each (heads, 1, d / heads)."""

    key: Tensor
    value: Tensor


class _Layer(NamedTuple):
    norm1: tuple[Tensor, Tensor]  # (d,), (d,)
    qkv: tuple[Tensor, Tensor]  # (3d, d), (3d,)
    out: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class TextTower:
    """The text tower of a CLIP model, in copies of its weights that take no gradient.

    Args:
        model: a ``CLIPModel`` or ``CLIPTextModelWithProjection``; stays as it is.
        begin, end: ids of the begin and end tokens.
        dtype: of the weights and of the computation.

    Attributes:
        embeddings: (vocabulary, d), the token embeddings as the model has them.
        window: positions there are, begin and end included.

    Raises:
        ValueError: ``end`` is not where the model would pool.
    """

    def __init__(self, model: Any, *, begin: int, end: int, dtype: torch.dtype = torch.float32) -> None:
        config = getattr(model.config, "text_config", model.config)
        pooled = config.vocab_size - 1 if config.eos_token_id == _LEGACY_END else config.eos_token_id
        if end != pooled:
            raise ValueError(f"the model pools at token {pooled}, and the end token is {end}")
        text = model.text_model
        self.dtype, self.eps = dtype, float(config.layer_norm_eps)
        self.heads = int(config.num_attention_heads)
        self.embeddings: Tensor = text.embeddings.token_embedding.weight.detach()
        self.positions = text.embeddings.position_embedding.weight.detach().to(dtype)
        self.window = len(self.positions)
        self._activation, gain = _activation(config.hidden_act)
        self._layers = [_layer(layer, gain, dtype) for layer in text.encoder.layers]
        self._norm = _weights(text.final_layer_norm, dtype)
        self._projection = model.text_projection.weight.detach().to(dtype)
        self._end = self.embeddings[end].to(dtype)
        self._begin = self._constants(self.embeddings[begin].to(dtype) + self.positions[0])

    @torch.no_grad()
    def _constants(self, hidden: Tensor) -> list[_KeyValue]:
        """The begin token's key and value in every layer: it attends to itself alone."""
        constants = []
        for layer in self._layers:
            _, key, value = functional.linear(self._normed(hidden, layer.norm1), *layer.qkv).chunk(3)
            constants.append(_KeyValue(key.view(self.heads, 1, -1), value.view(self.heads, 1, -1)))
            hidden = self._mlp(hidden + functional.linear(value, *layer.out), layer)
        return constants

    def __call__(self, slots: Tensor) -> Tensor:
        """Projected features, not normalised, (n, projection) in the tower's dtype, of slots (n, N, d).

        Differentiable in ``slots``. Rows do not see each other.

        Raises:
            ValueError: more slots than the window has room for.
        """
        n, count, width = slots.shape
        if count > self.window - 2:
            raise ValueError(f"{count} slots, and a window of {self.window} has room for {self.window - 2}")
        last = self._end + self.positions[count + 1]
        hidden = torch.cat([slots.to(self.dtype) + self.positions[1 : count + 1], last.expand(n, 1, width)], dim=1)
        # Slot i sees the begin token, the slots before it and itself.
        unseen = hidden.new_full((count + 1, count + 2), -torch.inf).triu(2)
        for layer, begin in zip(self._layers[:-1], self._begin[:-1], strict=True):
            query, key, value = self._heads(functional.linear(self._normed(hidden, layer.norm1), *layer.qkv), 3)
            hidden = self._mlp(hidden + self._attend(query, key, value, begin, layer, unseen), layer)
        ended = self._last(hidden, self._layers[-1], self._begin[-1])
        return functional.linear(self._normed(ended, self._norm), self._projection)

    def _last(self, hidden: Tensor, layer: _Layer, begin: _KeyValue) -> Tensor:
        """The last layer's end token, (n, d), from all hidden states (n, N + 1, d)."""
        normed, width = self._normed(hidden, layer.norm1), hidden.shape[2]
        (query,) = self._heads(functional.linear(normed[:, -1:], layer.qkv[0][:width], layer.qkv[1][:width]), 1)
        key, value = self._heads(functional.linear(normed, layer.qkv[0][width:], layer.qkv[1][width:]), 2)
        return self._mlp(hidden[:, -1:] + self._attend(query, key, value, begin, layer, None), layer)[:, 0]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        begin: _KeyValue,
        layer: _Layer,
        unseen: Tensor | None,
    ) -> Tensor:
        n = len(query)
        key = torch.cat([begin.key.expand(n, -1, -1, -1), key], dim=2)
        value = torch.cat([begin.value.expand(n, -1, -1, -1), value], dim=2)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=unseen)
        return functional.linear(mixed.transpose(1, 2).flatten(2), *layer.out)

    def _heads(self, joint: Tensor, parts: int) -> list[Tensor]:
        """(n, m, parts x d) into ``parts`` of (n, heads, m, d / heads)."""
        n, m, width = joint.shape
        split = joint.view(n, m, parts, self.heads, width // (parts * self.heads))
        return list(split.permute(2, 0, 3, 1, 4).unbind(0))

    def _mlp(self, hidden: Tensor, layer: _Layer) -> Tensor:
        inner = self._activation(functional.linear(self._normed(hidden, layer.norm2), *layer.up))
        return hidden + functional.linear(inner, *layer.down)

    def _normed(self, hidden: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(hidden, hidden.shape[-1:], *affine, self.eps)


def _layer(layer: Any, gain: float, dtype: torch.dtype) -> _Layer:
    own = layer.self_attn
    joint = [_weights(part, None) for part in (own.q_proj, own.k_proj, own.v_proj)]
    (up, up_bias), (down, down_bias) = _weights(layer.mlp.fc1, None), _weights(layer.mlp.fc2, None)
    return _Layer(
        norm1=_weights(layer.layer_norm1, dtype),
        qkv=(torch.cat([w for w, _ in joint]).to(dtype), torch.cat([b for _, b in joint]).to(dtype)),
        out=_weights(own.out_proj, dtype),
        norm2=_weights(layer.layer_norm2, dtype),
        up=((up * gain).to(dtype), (up_bias * gain).to(dtype)),
        down=((down / gain).to(dtype), down_bias.to(dtype)),
    )


def _weights(module: Any, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Weight and bias; with no dtype at least in float32, for arithmetic before they are rounded."""
    weight, bias = module.weight.detach(), module.bias.detach()
    to = dtype or torch.promote_types(weight.dtype, torch.float32)
    return weight.to(to), bias.to(to)


def _activation(name: str) -> tuple[Callable[[Tensor], Tensor], float]:
    """The MLP's activation, and by how much its input is scaled up and its output down (for CLIP's quick_gelu)."""
    if name == "quick_gelu":
        return functional.silu, _QUICK
    if name == "gelu":
        return functional.gelu, 1.0
    from transformers.activations import ACT2FN

    function: Callable[[Tensor], Tensor] = ACT2FN[name]
    return function, 1.0
