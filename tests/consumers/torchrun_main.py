# SPDX-License-Identifier: MIT
"""torchrun --nproc-per-node N tests/consumers/torchrun_main.py CONSUMER [PROGRAM ...]

Programs of a consumer, all without names, one process per rank over torch.distributed.

vLLM gives a gloo group of CPUs, the others give the nccl group, or where ranks share GPUs, which
NCCL refuses, a gloo group too.
"""

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In place of this folder, where `vllm` is not vLLM.
sys.path[0] = str(ROOT)
sys.path.insert(1, str(ROOT / "compat"))

import torch  # noqa: E402
from torch import distributed  # noqa: E402


def main(consumer, *names):
    from tests.consumers import common

    num_gpus = torch.cuda.device_count()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % num_gpus)
    torch.cuda.set_device(device)
    shared = int(os.environ["LOCAL_WORLD_SIZE"]) > num_gpus
    distributed.init_process_group("gloo" if shared else "nccl")
    cpus = distributed.new_group(backend="gloo")
    group = cpus if consumer == "vllm" else distributed.group.WORLD
    place = common.Place(group, distributed.get_rank(), distributed.get_world_size(), device,
                         lambda: distributed.barrier(cpus))
    programs = importlib.import_module(f"tests.consumers.{consumer}").PROGRAMS
    for name in names or programs:
        programs[name](place)
        torch.cuda.synchronize()
        print(f"rank {place.rank}: {consumer}, {name}: bit-exact", flush=True)
    distributed.barrier(cpus)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
