"""The tiny network, ready to be searched."""

from __future__ import annotations

import pytest

from tests.engines.quantize.searching import Network, network_of


@pytest.fixture(scope="session")
def network(converted) -> Network:
    return network_of(converted)
