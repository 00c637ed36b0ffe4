"""SAFREE's latent re-attention: what hooks on a UNet's upward blocks do to the skip features they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.defenses.subspaces import reattended

if TYPE_CHECKING:
    from torch import Tensor


class SkipAttention:
    """Hooks that weaken low frequencies of the changed prompts' skip features where they exceed the originals'.

    As in FreeU, from which the method takes its place in the network, features count by the width of what they are
    joined to: the UNet's widest blocks have the first scale, the second widest the second, others none.

    Args:
        unet: of diffusers.
        scales: of Eq. 8, for the widest and the second widest blocks.
        rule: ``paper`` or ``released``, see ``subspaces.reattended``.
    """

    def __init__(self, unet: Any, scales: tuple[float, float], rule: str) -> None:
        widths = sorted(set(unet.config.block_out_channels), reverse=True)
        self._scales = dict(zip(widths, scales, strict=False))
        self._rule = rule
        self._active: Sequence[bool] | None = None
        self._hooks = [block.register_forward_pre_hook(self._before, with_kwargs=True) for block in unet.up_blocks]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def over(self, active: Sequence[bool]) -> Iterator[None]:
        """While inside, a batch ends with the changed prompts' rows and then the originals'.

        Args:
            active: for each image, whether its features are weakened.
        """
        self._active = active
        try:
            yield
        finally:
            self._active = None

    def _before(self, block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._active is None or not any(self._active):
            return None
        skips = list(kwargs["res_hidden_states_tuple"])
        for resnet, place in zip(block.resnets, range(len(skips) - 1, -1, -1), strict=False):
            joined = resnet.in_channels - skips[place].shape[1]  # the block takes its skips from the end
            if joined in self._scales:
                skips[place] = self._weakened(skips[place], self._scales[joined], self._active)
        return args, {**kwargs, "res_hidden_states_tuple": tuple(skips)}

    def _weakened(self, features: Tensor, scale: float, active: Sequence[bool]) -> Tensor:
        import torch

        count = len(active)
        rest, safe, original = features[: -2 * count], features[-2 * count : -count], features[-count:]
        rows = [reattended(s[None], o[None], scale, self._rule) if on else s[None]
                for s, o, on in zip(safe, original, active, strict=True)]  # fmt: skip
        return torch.cat([rest, *rows, original])
