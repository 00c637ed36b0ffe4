"""What is of the embedded world, by name: the one test that reports, judges and the contact sheet ask."""

from __future__ import annotations

import pytest

from harness.data.concepts import is_shapes_world


@pytest.mark.parametrize("name", ["shapes", "shapes:steps=10", "shapes:steps=10:guidance=2"])
def test_however_it_is_sampled_it_is_the_same_world(name: str) -> None:
    assert is_shapes_world(name)


@pytest.mark.parametrize("name", ["sd-1-4", "sd-1-4:steps=10", "shapes-2", "imported", "paper", "", "xshapes:steps=1"])
def test_another_name_is_another_world(name: str) -> None:
    assert not is_shapes_world(name)
