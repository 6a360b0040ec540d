# SPDX-License-Identifier: MIT
import pytest

pytest.importorskip("torch")

from deepep_ptx import run_ranks  # noqa: E402
from tests.consumers import common, megatron, sglang, tensorrt_llm, vllm  # noqa: E402

PROGRAMS = [
    pytest.param(program, id=f"{module.__name__.rpartition('.')[2]}-{name}")
    for module in (megatron, sglang, tensorrt_llm, vllm)
    for name, program in module.PROGRAMS.items()
]


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program, num_ranks):
    run_ranks(lambda comm: program(common.Place.of(comm)), num_ranks, executor="emu",
              check="races" if num_ranks == 2 else None)
