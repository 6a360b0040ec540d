# SPDX-License-Identifier: MIT
"""One process per rank, over a gloo group; where there is one GPU they share it."""

import os
import socket

import torch


def start(rank, port, target, argument):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    target(rank, torch.distributed.group.WORLD, argument)
    os._exit(0)                       # a dead peer would hold up the end of the group


def spawn(target, argument=None):
    """Exit codes of target(rank, group, argument) in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=start, args=(rank, port, target, argument))
                 for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
