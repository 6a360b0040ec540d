# SPDX-License-Identifier: MIT
"""torchrun --nproc-per-node 2 examples/torchrun.py"""

import os

import torch
from moe_layer import run
from torch import distributed

from deepep_ptx import Buffer

torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
distributed.init_process_group("nccl")
with Buffer(distributed.group.WORLD) as buffer:
    error = run(buffer, torch.device("cuda"))
distributed.destroy_process_group()
assert error == 0, error
