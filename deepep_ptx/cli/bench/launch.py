# SPDX-License-Identifier: MIT
"""Ranks for a measurement: threads of this process, or one process per GPU."""

import contextlib
import importlib.util
import multiprocessing
import os
import socket
from multiprocessing import connection

from deepep_ptx import run_ranks
from deepep_ptx.comm import as_comm
from deepep_ptx.cuda_ranks import ask_for_queues
from deepep_ptx.errors import DeepEPError

LAYOUTS = ("processes", "threads")
GRACE_S = 5         # for the other processes, once one has failed


def torch_with_cuda():
    """(torch, None), or (None, why it cannot make a group of processes with a GPU each)."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return None, "this torch has no CUDA, or finds no GPU"
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        return None, "this torch has no torch.distributed with gloo"
    return torch, None


def in_torchrun():
    """Whether this process is one of a group that torchrun has started."""
    return {"LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def run(main, plan):
    """What `main(comm, plan)` returns on rank 0, run on every rank of the plan.

    plan: layout, executor, arch, devices, ranks, seed.  With processes, `main` and `plan` pickle.

    Raises:
        ValueError: bad input that a rank found.
        DeepEPError, RankError: a rank failed.
    """
    if plan.layout == "threads":
        ask_for_queues()        # before a context is made: ranks may share a GPU
        return run_ranks(main, plan.ranks, plan, executor=plan.executor, arch=plan.arch,
                         seed=plan.seed, devices=plan.devices)[0]
    if in_torchrun():
        return _in_group(int(os.environ["LOCAL_RANK"]), main, plan)
    return _spawn(main, plan)


def _in_group(device, main, plan, **group):
    """What `main` returns in this process, with the GPU `device`."""
    import torch

    torch.cuda.set_device(device)
    torch.distributed.init_process_group("gloo", **group)
    result = main(as_comm(torch.distributed.group.WORLD), plan)
    torch.distributed.destroy_process_group()
    return result


def _spawn(main, plan, in_group=_in_group):
    """What `main` returns on rank 0, each rank a process of its own that runs `in_group`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for rank, device in enumerate(plan.devices):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_process, name=f"rank {rank}",
                                      args=(theirs, in_group, rank, device, address, main, plan))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(mine)
        return _results(pipes)[0]
    finally:
        for process in processes:
            process.join(GRACE_S)
            process.kill()
            process.join()


def _process(pipe, in_group, rank, device, address, main, plan):
    """Body of a rank's process: sends (kind, result or text)."""
    try:
        result = in_group(device, main, plan, init_method=address, rank=rank,
                          world_size=len(plan.devices))
    except KeyboardInterrupt:
        return
    except ValueError as error:
        pipe.send(("input", str(error)))
    except Exception as error:
        pipe.send(("failure", f"rank {rank}: {type(error).__name__}: {error}"))
    else:
        pipe.send(("result", result))


def _results(pipes):
    """What each rank's process has sent, in rank order; raises the first failure."""
    results = {}
    while len(results) < len(pipes):
        waiting = [pipe for pipe in pipes if pipe not in results]
        for pipe in connection.wait(waiting):
            rank = pipes.index(pipe)
            kind, value = "failure", f"rank {rank}: its process has died"
            with contextlib.suppress(EOFError):
                kind, value = pipe.recv()
            if kind == "input":
                raise ValueError(value)
            if kind == "failure":
                raise DeepEPError(value)
            results[pipe] = value
    return [results[pipe] for pipe in pipes]
