# SPDX-License-Identifier: MIT
"""DeepEP V1's `Buffer`."""

import deepep_ptx

from . import _names


class _BufferNames(type):
    """Static methods that come later are missing from the class too."""

    def __getattr__(cls, name):
        _names.raise_missing(cls.__name__, name, _names.LATER_IN_BUFFER)


class Buffer(deepep_ptx.Buffer, metaclass=_BufferNames):
    """`deepep_ptx.Buffer` as consumers of DeepEP V1 construct it.

    Everything that is not said here is as there, in particular: `destroy()` is also allowed
    without `explicitly_destroy`, any number of SMs is, and a `Config` counts for its num_sms only.

    Args:
        group: a torch.distributed group (nccl or gloo), or what else deepep_ptx takes; None: `comm`
            is the group.
        num_nvl_bytes: with which the arena starts; it limits no result, as in DeepEP, where it
            sizes queues.
        num_rdma_bytes: with which low-latency memory starts; 0 without low_latency_mode.
        low_latency_mode, num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl,
            explicitly_destroy, enable_shrink: as in deepep_ptx.
        use_fabric: None or False.
        comm: an mpi4py communicator, where `group` is None.
        options: further ones of deepep_ptx's: policy, timeout_s, zero_copy, reduce, ...

    Raises:
        NotImplementedError: an argument that asks for what comes later; it is named.
        ValueError, TypeError: also as deepep_ptx.Buffer.
    """

    def __init__(self, group=None, num_nvl_bytes=0, num_rdma_bytes=0, low_latency_mode=False,
                 num_qps_per_rank=24, allow_nvlink_for_low_latency_mode=True, allow_mnnvl=False,
                 explicitly_destroy=False, enable_shrink=False, *, use_fabric=None, comm=None,
                 **options):
        group = comm if group is None else group
        if group is None:
            raise ValueError("group: must be given, or comm")
        if use_fabric:
            raise NotImplementedError("use_fabric: must be None or False, memory is shared by CUDA "
                                      "IPC in this release")
        super().__init__(group, num_nvl_bytes, num_rdma_bytes, low_latency_mode, num_qps_per_rank,
                         allow_nvlink_for_low_latency_mode, allow_mnnvl, explicitly_destroy,
                         enable_shrink, **options)


    def __getattr__(self, name):
        _names.raise_missing(type(self).__name__, name, _names.LATER_IN_BUFFER)

    @staticmethod
    def set_num_sms(new_num_sms):
        """As `deepep_ptx.Buffer.set_num_sms`."""
        try:
            deepep_ptx.Buffer.set_num_sms(new_num_sms)
        except (TypeError, ValueError) as error:
            raise type(error)(f"new_{error}") from None
