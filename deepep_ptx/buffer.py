# SPDX-License-Identifier: MIT
"""DeepEP's `Buffer`: dispatch and combine among the ranks of a group."""

import math
import numbers
import warnings

from . import select
from ._buffer import (
    FOREVER,
    MAX_LOCAL_EXPERTS,
    MAX_RANKS,
    MAX_TOPK,
    ROW_ALIGN,
    SLOT_ALIGN,
    CoreBuffer,
)
from ._executor import Executor
from .arrays import BFLOAT16, BOOL, FLOAT32, INT32, INT64, Call
from .comm import as_comm
from .errors import CapacityError, DeepEPError, DestroyedError, RankMismatchError
from .event import EventOverlap
from .handle import EPHandle

DEFAULT_SMS = 20
GROWTH_STEP = 1 << 20  # bytes: arena segments that grow by themselves are multiples of it


# Buffers of GPUs that were left without the other ranks: their memory, code and context stay until
# the process ends.  (On the CPU executor they end with the run.)
_abandoned = []


class Buffer:
    """One rank's end of expert-parallel communication.

    Construction, `reset()`, `destroy()` and every `dispatch` and `combine` are collective: all
    ranks of the group make the same calls in the same order, one at a time.

    Arrays.  Results are of the library of the call's first array, and all arrays of a call are of
    one library.  On the CPU executor: NumPy arrays or torch CPU tensors; other host memory
    (`__array_interface__`, DLPack) gives NumPy results.  On GPUs: torch CUDA tensors, CuPy arrays;
    other device memory (`__cuda_array_interface__`, DLPack) gives `DeviceArray`; NumPy arrays are
    copied in and results copied out, for convenience.
    Streams.  A call's kernels run after what the caller's stream has queued, and what it queues
    next runs after them.  `stream=` names it: an int, or an object with `__cuda_stream__`,
    `cuda_stream` or `ptr`; None takes the library's current stream, else the array's
    `__cuda_array_interface__["stream"]`, else the legacy default stream.  On the CPU executor it
    must be None or 0.

    Args:
        group: what `run_ranks` gives to each rank, a `torch.distributed` process group or an
            mpi4py communicator with one process per GPU, or an object with `rank`, `size`,
            `allgather(obj)`, `barrier()` and `executor`.
        num_nvl_bytes: bytes of the arena for results and staging, a multiple of 128; a hard
            limit.  0: the arena grows as calls need it, except for calls with num_worst_tokens,
            which must not wait for the host.
        num_rdma_bytes: 0.
        low_latency_mode: False.
        num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl: as in DeepEP; without
            effect inside one NVLink domain.
        explicitly_destroy: the user calls `destroy()`; without it an unreachable buffer frees
            what is its own; the others must not be in a call with it any more.
        policy: form of payload loads: "fast", "safe", "aggressive", a policy or a variant's
            symbol, or "bulk"; None: DEEPEP_PTX_POLICY, then DISABLE_AGGRESSIVE_PTX_INSTRS, then
            "fast".
        timeout_s: limit of each wait for another rank, in seconds (on the CPU executor of its
            virtual time); None or infinity: no limit.
        zero_copy: results are views into the arena, and combine reads expert output from there.
            False: results are copies, and combine always pushes.

    Raises:
        ValueError, TypeError: an argument out of range; the text begins with its name.
        NotImplementedError: low_latency_mode, num_rdma_bytes.
        RankMismatchError: one rank limits the arena and another does not.
    """

    num_sms = DEFAULT_SMS

    def __init__(self, group, num_nvl_bytes=0, num_rdma_bytes=0, low_latency_mode=False,
                 num_qps_per_rank=24, allow_nvlink_for_low_latency_mode=True, allow_mnnvl=False,
                 explicitly_destroy=False, *, policy=None, timeout_s=100.0, zero_copy=True):
        self._core = None
        group = _checked_group(group)
        _check_int(num_nvl_bytes, "num_nvl_bytes", 0)
        if num_nvl_bytes % SLOT_ALIGN:
            raise ValueError(f"num_nvl_bytes: must be a multiple of {SLOT_ALIGN}, "
                             f"got {num_nvl_bytes}")
        if _check_int(num_rdma_bytes, "num_rdma_bytes", 0):
            raise NotImplementedError("num_rdma_bytes: must be 0, all ranks share one NVLink "
                                      f"domain; got {num_rdma_bytes}")
        if low_latency_mode:
            raise NotImplementedError("low_latency_mode: must be False in this release")
        _check_int(num_qps_per_rank, "num_qps_per_rank", 1)
        timeout_ns = _timeout_ns(timeout_s)
        self.variants = select.choose(*_policy_for(policy, group.executor.arch))

        self.group = group
        self.rank = group.rank
        self.group_size = group.size
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = 0
        self.low_latency_mode = False
        self.explicitly_destroy = explicitly_destroy
        self.timeout_s = timeout_s
        self.zero_copy = bool(zero_copy)
        self._copied_bytes = 0
        self._core = self._connect(timeout_ns)

    # -- construction, growth, end -------------------------------------------------------------

    def _connect(self, timeout_ns):
        _check_same_growth(self.group.allgather(self.num_nvl_bytes))
        core = CoreBuffer(self.group.executor, self.rank, self.group_size, timeout_ns)
        for name, variant in self.variants.items():
            core.load_kernel(name, variant, select.read_text(variant))
        for rank, handle in enumerate(self.group.allgather(core.heap_handle())):
            core.open_heap(rank, handle)
        if self.num_nvl_bytes:
            self._add_segment(core, self.num_nvl_bytes)
        else:
            core.publish()
        # Every CTA of combine_reduce may wait for another rank, so those of all ranks that share
        # a GPU must fit on it together.
        _check_same_kind(self.group.allgather(self.group.executor.device_name))
        places = self.group.allgather(self.group.executor.place)
        self._ranks_here = places.count(places[self.rank])
        self._max_sms = core.max_resident("combine_reduce") // self._ranks_here
        if self._max_sms == 0:
            raise ValueError(f"group: {self._ranks_here} ranks do not fit on one GPU, at most "
                             f"{core.max_resident('combine_reduce')} do")
        return core

    def _checked_sms(self):
        if self.num_sms == DEFAULT_SMS:
            return min(DEFAULT_SMS, self._max_sms)
        if self.num_sms > self._max_sms:
            raise ValueError(
                f"num_sms: must be in [1, {self._max_sms}], the CTAs per rank that "
                f"{self._ranks_here} rank(s) on one GPU can have side by side; got {self.num_sms}")
        return self.num_sms

    def _add_segment(self, core, nbytes):
        """Collective: all ranks get the segment, or none and an error."""
        mine, failure = _attempt(core.add_segment, nbytes)
        all_ranks = self.group.allgather(mine)
        if None not in all_ranks:
            _, failure = _attempt(self._open_segments, core, all_ranks)
        failed = self.group.allgather(failure is not None or None in all_ranks)
        if True not in failed:
            return
        if mine is not None:
            core.drop_segment()
        if failure is not None:
            raise failure
        culprit = all_ranks.index(None) if None in all_ranks else failed.index(True)
        raise DeepEPError(f"rank {culprit} could not add {nbytes} bytes to its arena")

    def _open_segments(self, core, all_ranks):
        for rank, (index, handle) in enumerate(all_ranks):
            core.open_segment(rank, index, handle)
        core.publish()

    def _grow(self, needed_bytes):
        """Collective: room for the call that has just found none."""
        needed = max(self.group.allgather(needed_bytes))
        nbytes = max(needed, self._core.arena_bytes)
        self._add_segment(self._core, -(-nbytes // GROWTH_STEP) * GROWTH_STEP)

    def _live_core(self):
        if self._core is None:
            raise DestroyedError("the buffer was used after destroy()")
        return self._core

    def reset(self):
        """Make the buffer usable again after a `DeepEPTimeoutError` on any rank; collective.

        Slots that the failed calls held are free again.
        """
        core = self._live_core()
        epoch = core.reset_begin()
        self.group.barrier()
        core.reset_end(max(self.group.allgather(epoch)))
        self.group.barrier()

    def destroy(self):
        """Free the buffer; collective.  Results that still live keep their memory."""
        if self._core is None:
            return
        self.group.barrier()
        self._core.close_peers()
        self.group.barrier()
        core, self._core = self._core, None
        core.close()

    def _leave(self):
        """End without the other ranks, who may be in the middle of a call with this one."""
        core, self._core = self._core, None
        core.abandon()
        if core.executor.name == "cuda":
            _abandoned.append(core)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        # After an error the other ranks may never reach a barrier.
        if exc_type is None:
            self.destroy()
        elif self._core is not None:
            self._leave()

    def __del__(self):
        if getattr(self, "_core", None) is None:
            return
        if self.explicitly_destroy:
            warnings.warn(f"rank {self.rank}: Buffer was not destroyed", ResourceWarning,
                          stacklevel=2)
        # After whole calls nobody writes here any more; after an aborted one somebody may.
        if self._core.is_aborted:
            self._leave()

    # -- settings and state --------------------------------------------------------------------

    @staticmethod
    def set_num_sms(num_sms):
        """CTAs of the kernels of all buffers from now on, at least 1; a call raises `ValueError`
        where that many do not fit on the GPU, beside those of other ranks that share it."""
        Buffer.num_sms = _check_int(num_sms, "num_sms", 1)

    @property
    def last_launch(self):
        """Symbols of the newest call's kernels, in launch order."""
        return self._live_core().launched

    def stats(self):
        """dict: arena_bytes, arena_used_bytes, arena_segments, and copied_bytes (results that
        did not stay in the arena)."""
        core = self._live_core()
        return {
            "arena_bytes": core.arena_bytes,
            "arena_used_bytes": core.arena_used_bytes,
            "arena_segments": core.num_segments,
            "copied_bytes": self._copied_bytes,
        }

    # -- calls ---------------------------------------------------------------------------------

    def get_dispatch_layout(self, topk_idx, num_experts, previous_event=None, async_finish=False,
                            allocate_on_comm_stream=False, *, stream=None):
        """Count where this rank's tokens go.

        Args:
            topk_idx: int64 or int32 [num_tokens, num_topk], num_topk in 1..32; -1 = unused.
            num_experts: a multiple of the group's size; expert e lives on rank
                e // (num_experts / size).
            previous_event, async_finish, allocate_on_comm_stream: None, False, False.
            stream: the caller's.

        Returns:
            num_tokens_per_rank int32 [R], num_tokens_per_rdma_rank None, num_tokens_per_expert
            int32 [num_experts], is_token_in_rank bool [num_tokens, R], event.

        Raises:
            ValueError: an expert outside of [-1, num_experts).
        """
        core = self._live_core()
        num_sms = self._checked_sms()
        _refuse_async(previous_event, async_finish, allocate_on_comm_stream)
        call = Call(core.executor, topk_idx, "topk_idx", stream)
        topk_idx = call.take(topk_idx, "topk_idx", (INT64, INT32), ("num_tokens", "num_topk"))
        _check_topk(topk_idx.shape[1])
        self._check_experts(_check_int(num_experts, "num_experts", 1), "num_experts")
        num_tokens_per_rank = call.empty((self.group_size,), INT32)
        num_tokens_per_expert = call.empty((num_experts,), INT32)
        is_token_in_rank = call.empty((topk_idx.shape[0], self.group_size), BOOL)
        core.layout(topk_idx, num_tokens_per_rank, num_tokens_per_expert, is_token_in_rank,
                    num_sms, call.stream)
        return (num_tokens_per_rank.owner, None, num_tokens_per_expert.owner,
                is_token_in_rank.owner, EventOverlap())

    def dispatch(self, x, handle=None, num_tokens_per_rank=None, num_tokens_per_rdma_rank=None,
                 is_token_in_rank=None, num_tokens_per_expert=None, topk_idx=None,
                 topk_weights=None, expert_alignment=1, num_worst_tokens=0, config=None,
                 previous_event=None, async_finish=False, allocate_on_comm_stream=False, *,
                 stream=None):
        """Send each token once to every rank that has one of its experts; collective.

        Args:
            x: bfloat16 [num_tokens, hidden], rows a multiple of 16 bytes; unchanged until the
                call returns.
            handle: None.
            num_tokens_per_rank, num_tokens_per_rdma_rank, is_token_in_rank,
            num_tokens_per_expert: as `get_dispatch_layout` returned them; the ranks' counts are
                checked against is_token_in_rank, the experts' are passed on as they are.
            topk_idx: int64 or int32 [num_tokens, num_topk]; None with topk_weights None.  Not
                checked against the layout; what is no expert of a token's rank arrives as -1.
            topk_weights: float32 [num_tokens, num_topk].
            expert_alignment: num_recv_tokens_per_expert_list is rounded up to multiples of it.
            num_worst_tokens: 0, or the number of rows of every result, at least what any rank
                receives; then top-k is needed and the host does not wait for the totals.
            config: None.
            previous_event, async_finish, allocate_on_comm_stream: None, False, False.
            stream: the caller's.

        Returns:
            recv_x: bfloat16 [n, hidden]; rows by source rank, then by token.
            recv_topk_idx: [n, num_topk] as topk_idx: local expert, -1 for another rank's; or None.
            recv_topk_weights: float32 [n, num_topk], 0 where recv_topk_idx is -1; or None.
            num_recv_tokens_per_expert_list: list of ints, one per local expert; [] with
                num_worst_tokens.
            handle: for `combine`.
            event: `EventOverlap`.
            The arrays are views into the arena unless zero_copy is False, or NumPy arrays were
            given on a GPU; the last one that dies (the handle has one too) frees their slot.
            With num_worst_tokens, rows past those received have recv_topk_idx -1 and are otherwise
            unspecified.

        Raises:
            ValueError, TypeError: an argument; nothing was launched, or no row was moved.
            CapacityError: a rank has no room for its rows (all ranks raise it).
            RankMismatchError: ranks gave different arguments (all ranks raise it).
            DeepEPTimeoutError: another rank did not come; then `reset()`.
        """
        core = self._live_core()
        num_sms = self._checked_sms()
        _refuse_async(previous_event, async_finish, allocate_on_comm_stream)
        if handle is not None:
            raise NotImplementedError("handle: cached dispatch is not in this release; give the "
                                      "layout instead")
        _refuse_config(config)
        if num_tokens_per_rdma_rank is not None:
            raise ValueError("num_tokens_per_rdma_rank: must be None, all ranks share one NVLink "
                             "domain")
        _check_int(expert_alignment, "expert_alignment", 1)
        _check_int(num_worst_tokens, "num_worst_tokens", 0, (1 << 31) - 1)
        call = _call(core, x, stream)
        x = _check_rows(call, x, "num_tokens")
        num_tokens, hidden = x.shape
        num_tokens_per_rank = call.take(num_tokens_per_rank, "num_tokens_per_rank", (INT32,),
                                        (self.group_size,))
        num_tokens_per_expert = call.take(num_tokens_per_expert, "num_tokens_per_expert",
                                          (INT32,), ("num_experts",))
        self._check_experts(num_tokens_per_expert.shape[0], "num_tokens_per_expert")
        in_rank = call.take(is_token_in_rank, "is_token_in_rank", (BOOL,),
                            (num_tokens, self.group_size))
        if num_worst_tokens and topk_idx is None:
            raise ValueError("topk_idx: must be given with num_worst_tokens")
        topk_idx, topk_weights = _check_topk_pair(call, topk_idx, topk_weights, num_tokens)

        pos = call.empty((num_tokens, self.group_size), INT32)
        rank_prefix = call.empty((self.group_size, self.group_size), INT32)

        def run():
            return core.dispatch(x, topk_idx, topk_weights, in_rank, num_tokens_per_rank,
                                 num_tokens_per_expert, pos, rank_prefix, num_worst_tokens,
                                 num_sms, call.stream)

        received = run() if num_worst_tokens else self._run_with_growth(run)
        recv_x, recv_topk_idx, recv_topk_weights, recv_src_idx = self._views(
            call, received, hidden, topk_idx)
        for array in (pos.owner, rank_prefix.owner, recv_src_idx):
            call.freeze(array)
        handle = EPHandle(
            rank_prefix.owner, recv_src_idx=recv_src_idx, is_token_in_rank=is_token_in_rank,
            num_tokens=num_tokens, num_recv=received.rows,
            num_topk=0 if topk_idx is None else topk_idx.shape[1], epoch=received.epoch,
            pos=pos.owner, executor=core.executor.name,
        )
        aligned = [-(-count // expert_alignment) * expert_alignment
                   for count in received.expert_counts]
        return recv_x, recv_topk_idx, recv_topk_weights, aligned, handle, EventOverlap()

    def combine(self, x, handle, topk_weights=None, bias=None, config=None, previous_event=None,
                async_finish=False, allocate_on_comm_stream=False, *, stream=None):
        """Add up, for each of this rank's tokens, the rows that its ranks made of it; collective.

        The sum is in float32, in ascending rank order on top of the biases, rounded once.

        Args:
            x: bfloat16 [handle.num_recv, hidden]; in the arena (computed in place in recv_x) it
                is read there by the other ranks, else it is sent.
            handle: of the dispatch.
            topk_weights: float32 [handle.num_recv, num_topk] or None.
            bias: None, bfloat16 [num_tokens, hidden], or a pair of such.
            config: None.
            previous_event, async_finish, allocate_on_comm_stream: None, False, False.
            stream: the caller's.

        Returns:
            combined_x bfloat16 [num_tokens, hidden], combined_topk_weights float32 [num_tokens,
            num_topk] (sums over the ranks) or None, event.

        Raises:
            As `dispatch`.
        """
        core = self._live_core()
        num_sms = self._checked_sms()
        _refuse_async(previous_event, async_finish, allocate_on_comm_stream)
        _refuse_config(config)
        if not isinstance(handle, EPHandle):
            raise TypeError(f"handle: must be what dispatch returned, got {type(handle).__name__}")
        if handle.executor != core.executor.name:
            raise ValueError(f"handle: made on executor {handle.executor!r}, this buffer is on "
                             f"{core.executor.name!r}")
        if len(handle[0]) != self.group_size:
            raise ValueError(f"handle: made by a group of {len(handle[0])} ranks, this one has "
                             f"{self.group_size}")
        call = _call(core, x, stream)
        x = _check_rows(call, x, handle.num_recv)
        hidden = x.shape[1]
        if topk_weights is not None:
            topk_weights = call.take(topk_weights, "topk_weights", (FLOAT32,),
                                     (handle.num_recv, "num_topk"))
            _check_topk(topk_weights.shape[1], "topk_weights")
        bias0, bias1 = _unpack_bias(call, bias, handle.num_tokens, hidden)
        pos = call.take(handle.pos, "handle.pos", (INT32,), (handle.num_tokens, self.group_size))
        rank_prefix = call.take(handle[0], "handle[0]", (INT32,),
                                (self.group_size, self.group_size))

        out = call.empty((handle.num_tokens, hidden), BFLOAT16)
        out_weights = None
        if topk_weights is not None:
            out_weights = call.empty((handle.num_tokens, topk_weights.shape[1]), FLOAT32)

        def run():
            core.combine(x, topk_weights, bias0, bias1, out, out_weights, pos, rank_prefix,
                         handle.epoch, self.zero_copy, num_sms, call.stream)

        self._run_with_growth(run)
        return out.owner, None if out_weights is None else out_weights.owner, EventOverlap()

    def _run_with_growth(self, run):
        """`run()`, again with a larger arena while it has no room and may grow.

        All ranks get the same verdict, so all of them grow, or none.  Each turn adds a segment, of
        which there are few.
        """
        while True:
            try:
                return run()
            except CapacityError as error:
                if self.num_nvl_bytes:
                    raise
                needed = error.needed_bytes
            self._grow(needed)

    def _views(self, call, received, hidden, topk_idx):
        """recv_x, recv_topk_idx, recv_topk_weights, recv_src_idx over a slot."""
        slot, rows = received.slot, received.rows
        copy = call.copies or not self.zero_copy
        if slot is not None and copy:
            self._copied_bytes += slot.nbytes

        def part(offset, shape, dtype):
            if slot is None:
                return call.empty(shape, dtype).owner
            return call.part(slot, offset, shape, dtype, copy)

        at_x, at_idx, at_weights, at_src = received.offsets
        recv_topk_idx = recv_topk_weights = None
        if topk_idx is not None:
            num_topk = topk_idx.shape[1]
            recv_topk_idx = part(at_idx, (rows, num_topk), topk_idx.dtype)
            recv_topk_weights = part(at_weights, (rows, num_topk), FLOAT32)
        return (part(at_x, (rows, hidden), BFLOAT16), recv_topk_idx, recv_topk_weights,
                part(at_src, (rows,), INT32))

    def _check_experts(self, num_experts, name):
        num_local = num_experts // self.group_size
        if num_experts == 0 or num_experts % self.group_size or num_local > MAX_LOCAL_EXPERTS:
            raise ValueError(
                f"{name}: number of experts must be a multiple of the {self.group_size} ranks, at "
                f"most {MAX_LOCAL_EXPERTS} per rank and at least 1, got {num_experts}"
            )


def _attempt(function, *args):
    """(result, None), or (None, error) of what an executor may refuse."""
    try:
        return function(*args), None
    except (CapacityError, MemoryError, DeepEPError) as error:
        return None, error


# -- argument checks --------------------------------------------------------------------------

def _checked_group(group):
    group = as_comm(group)
    if not isinstance(getattr(group, "executor", None), Executor):
        raise TypeError("group: must have an executor, as the comm object that run_ranks passes")
    if group.size > MAX_RANKS:
        raise ValueError(f"group: must have at most {MAX_RANKS} ranks, has {group.size}")
    if getattr(group, "ranks_per_node", group.size) != group.size:
        raise NotImplementedError(f"group: its {group.size} ranks must share one NVLink domain in "
                                  f"this release, not {group.ranks_per_node} each")
    return group


def _check_same_growth(limits):
    for rank, limit in enumerate(limits):
        if bool(limit) != bool(limits[0]):
            raise RankMismatchError(
                f"num_nvl_bytes: rank 0 has {limits[0]}, rank {rank} has {limit}; the arena grows "
                "(0) on all ranks or on none", argument="num_nvl_bytes", ranks=(0, rank),
                values=(limits[0], limit),
            )


def _check_same_kind(names):
    """Kernels, links and the model of SMs are those of one kind of GPU."""
    for rank, name in enumerate(names):
        if name != names[0]:
            raise RankMismatchError(f"group: rank 0 has a {names[0]}, rank {rank} a {name}; all "
                                    "GPUs must be of one kind", argument="group", ranks=(0, rank),
                                    values=(names[0], name))


def _check_int(value, name, low, high=None):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: must be an integer, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        accepted = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: must be {accepted}, got {value}")
    return int(value)


def _timeout_ns(timeout_s):
    if timeout_s is None:
        return FOREVER
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, numbers.Real):
        raise TypeError(f"timeout_s: must be seconds or None, got {type(timeout_s).__name__}")
    if math.isinf(timeout_s) and timeout_s > 0:
        return FOREVER
    if not 1e-9 <= timeout_s <= 1e9:
        raise ValueError(f"timeout_s: must be None, infinity or in [1e-9, 1e9], got {timeout_s}")
    return int(timeout_s * 1e9)


def _policy_for(policy, arch):
    name, origin = select.requested_policy(policy)
    return name, arch, None, origin


def _call(core, x, stream):
    if isinstance(x, tuple):
        raise TypeError("x: must be one bfloat16 array; rows with scales are not in this release")
    return Call(core.executor, x, "x", stream)


def _check_rows(call, x, rows):
    x = call.take(x, "x", (BFLOAT16,), (rows, "hidden"), ROW_ALIGN)
    hidden = x.shape[1]
    if hidden == 0 or hidden * x.itemsize % ROW_ALIGN:
        raise ValueError(f"x: hidden must be a multiple of {ROW_ALIGN // x.itemsize} and at least "
                         f"that, got {hidden}")
    return x


def _check_topk(num_topk, name="topk_idx"):
    if not 1 <= num_topk <= MAX_TOPK:
        raise ValueError(f"{name}: num_topk must be in [1, {MAX_TOPK}], got {num_topk}")


def _check_topk_pair(call, topk_idx, topk_weights, num_tokens):
    if topk_idx is None and topk_weights is None:
        return None, None
    for name, value in (("topk_idx", topk_idx), ("topk_weights", topk_weights)):
        if value is None:
            raise ValueError(f"{name}: topk_idx and topk_weights must both be given, or neither")
    topk_idx = call.take(topk_idx, "topk_idx", (INT64, INT32), (num_tokens, "num_topk"))
    _check_topk(topk_idx.shape[1])
    topk_weights = call.take(topk_weights, "topk_weights", (FLOAT32,), topk_idx.shape)
    return topk_idx, topk_weights


def _unpack_bias(call, bias, num_tokens, hidden):
    if bias is None:
        return None, None
    if not isinstance(bias, tuple):
        return call.take(bias, "bias", (BFLOAT16,), (num_tokens, hidden), ROW_ALIGN), None
    if len(bias) != 2:
        raise ValueError(f"bias: must be None, one array or a pair, got {len(bias)}")
    return tuple(
        call.take(array, f"bias[{i}]", (BFLOAT16,), (num_tokens, hidden), ROW_ALIGN)
        for i, array in enumerate(bias)
    )


def _refuse_async(previous_event, async_finish, allocate_on_comm_stream):
    if previous_event is not None:
        raise NotImplementedError("previous_event: must be None in this release")
    if async_finish:
        raise NotImplementedError("async_finish: must be False in this release")
    if allocate_on_comm_stream:
        raise NotImplementedError("allocate_on_comm_stream: must be False in this release")


def _refuse_config(config):
    if config is not None:
        raise NotImplementedError("config: must be None in this release; see Buffer.set_num_sms")
