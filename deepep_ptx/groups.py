# SPDX-License-Identifier: MIT
"""Groups of other libraries, one process per GPU: torch.distributed and mpi4py.

Only the group's own collectives are used; nothing here opens a connection.
"""

from deepep_ptx._cuda import CudaExecutor


class ProcessComm:
    """A group of processes, each with one GPU.

    rank, size: ints.  executor: this process's GPU.  gather: allgather(obj) -> list in rank order.
    wait: barrier().
    """

    def __init__(self, rank, size, device, gather, wait):
        self.rank = rank
        self.size = size
        self.executor = CudaExecutor(device, rank=rank)
        self.allgather = gather
        self.barrier = wait

    def __repr__(self):
        return f"<ProcessComm rank {self.rank} of {self.size}, GPU {self.executor.device}>"


def from_torch(group):
    """A `torch.distributed.ProcessGroup` (nccl or gloo) whose processes have set their device."""
    import torch
    from torch import distributed

    size = distributed.get_world_size(group)

    def gather(obj):
        everybody = [None] * size
        distributed.all_gather_object(everybody, obj, group=group)
        return everybody

    # Not distributed.barrier(): with nccl it needs a kernel, which a spinning peer may keep out.
    return ProcessComm(distributed.get_rank(group), size, torch.cuda.current_device(), gather,
                       lambda: gather(None))


def from_mpi(comm, device=None):
    """An mpi4py communicator.  device: this process's GPU, None = its rank among the processes of
    its host, in turn."""
    from mpi4py import MPI

    from deepep_ptx._cuda import device_count

    if device is None:
        local = comm.Split_type(MPI.COMM_TYPE_SHARED)
        device = local.rank % max(1, device_count())
        local.Free()
    return ProcessComm(comm.rank, comm.size, device, comm.allgather, comm.Barrier)
