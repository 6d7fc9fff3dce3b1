# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest

from lutwise.hw.store import Store
from lutwise.hw.synthesis import Synthesizer, synthesizer_available


@pytest.fixture(scope="session")
def synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synthesizer]:
    """Give a worker that knows no earlier results."""
    if not synthesizer_available():
        pytest.skip("pyosys is not installed")
    with Synthesizer(store=Store(tmp_path_factory.mktemp("store"))) as worker:
        yield worker
