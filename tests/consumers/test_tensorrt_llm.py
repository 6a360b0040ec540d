# SPDX-License-Identifier: MIT
import pytest

pytest.importorskip("torch")

from deepep_ptx import run_ranks  # noqa: E402
from tests.consumers import common, tensorrt_llm  # noqa: E402


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("name", tensorrt_llm.PROGRAMS)
def test_program(name, num_ranks):
    run_ranks(lambda comm: tensorrt_llm.PROGRAMS[name](common.Place.of(comm)), num_ranks,
              executor="emu")
