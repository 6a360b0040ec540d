# SPDX-License-Identifier: MIT
"""mpirun -n 2 python examples/mpirun.py"""

import torch
from moe_layer import run
from mpi4py import MPI

from deepep_ptx import Buffer

with Buffer(MPI.COMM_WORLD) as buffer:
    torch.cuda.set_device(buffer.group.executor.device)
    error = run(buffer, torch.device("cuda"))
assert error == 0, error
