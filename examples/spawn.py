# SPDX-License-Identifier: MIT
"""python examples/spawn.py: one process per GPU, made with multiprocessing; a gloo group."""

import os

import torch
from moe_layer import run
from torch import distributed, multiprocessing

from deepep_ptx import Buffer


def main(rank, num_ranks):
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29571")
    torch.cuda.set_device(rank)
    distributed.init_process_group("gloo", rank=rank, world_size=num_ranks)
    with Buffer(distributed.group.WORLD) as buffer:
        error = run(buffer, torch.device("cuda"))
    distributed.destroy_process_group()
    assert error == 0, error


if __name__ == "__main__":
    num_ranks = torch.cuda.device_count()
    multiprocessing.spawn(main, (num_ranks,), num_ranks)
