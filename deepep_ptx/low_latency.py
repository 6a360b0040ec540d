# SPDX-License-Identifier: MIT
"""DeepEP's low-latency calls: dispatch and combine of few tokens, as decoding makes them."""

import contextlib
import functools
import threading

from . import _low_latency as core_calls
from ._arguments import check_experts, take_indices, take_weights
from ._array import Array
from ._call import Call
from ._limits import MAX_HIDDEN, MAX_RANKS, MAX_TOKENS, MAX_TOPK, ROW_ALIGN
from ._low_latency import (
    CAST_FP8,
    CAST_ROUND,
    CAST_UE8M0,
    GROUP,
    RECEIVE,
    REDUCTIONS,
    SEND,
    Combined,
    Sent,
    Shape,
)
from .arrays import BFLOAT16, FLOAT32, INT32, INT64
from .checks import as_bool, as_int, check_int
from .errors import DeepEPError
from .event import EventOverlap
from .handle import LowLatencyHandle

PACKED_SCALES = 4               # exponents in an int32
WORD_TOKENS = 64                # see `_low_latency.Shape`; the same on all ranks
# Of builds of DeepEP whose combine begins while its x is being computed: their defaults.
BLOCK_M, NO_SIGNAL = 64, 0
HINT_TOPK = 8                   # choices of a token that the size hint is for
_OWN_RING = 0, 0
_BOTH = SEND | RECEIVE


def default_reduce(num_ranks, num_topk):
    """The form of combine that moves fewer bytes between ranks, with choices at random.

    Exact: a bfloat16 row for each choice of another rank's expert.  By rank: an FP32 row for each
    other rank that has any of a token's experts.
    """
    others = num_ranks - 1
    rows = num_topk * others / num_ranks
    sums = others * (1 - (1 - 1 / num_ranks) ** num_topk)
    return "rank" if 2 * sums < rows else "exact"


def size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts, *,
              num_topk=HINT_TOPK, reduce=None):
    """Bytes of low-latency memory for calls of up to so many tokens; see
    `Buffer.get_low_latency_rdma_size_hint`."""
    num_ranks = check_int(num_ranks, "num_ranks", 1, MAX_RANKS)
    num_topk = check_int(num_topk, "num_topk", 1, MAX_TOPK)
    shape = _shape(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts, num_topk,
                   reduce)
    return shape.nbytes(num_ranks)


def check_reduce(reduce):
    """`reduce` itself: None, "exact" or "rank"."""
    if not (reduce is None or isinstance(reduce, str)) or reduce not in (None, *REDUCTIONS):
        raise ValueError(f"reduce: must be 'exact', 'rank' or None, got {reduce!r}")
    return reduce


def _shape(max_tokens, hidden, num_ranks, num_experts, num_topk, reduce):
    """The `Shape` of such calls, its numbers checked."""
    max_tokens = check_int(max_tokens, "num_max_dispatch_tokens_per_rank", 1, MAX_TOKENS)
    hidden = check_int(hidden, "hidden", GROUP, MAX_HIDDEN)
    if hidden % GROUP:
        raise ValueError(f"hidden: must be a multiple of {GROUP}, got {hidden}")
    num_experts = check_int(num_experts, "num_experts", 1)
    check_experts(num_experts, num_ranks, "num_experts")
    rows = num_experts * max_tokens
    if rows >= 2 ** 31:                 # of all experts, and of all choices
        raise ValueError("num_max_dispatch_tokens_per_rank: times num_experts must be below 2^31, "
                         f"got {rows}")
    reduce = check_reduce(reduce) or default_reduce(num_ranks, num_topk)
    return Shape(max_tokens, hidden, num_experts, num_topk, REDUCTIONS[reduce], WORD_TOKENS)


class ReceiveHook:
    """The second part of a low-latency call: call it once, and before the next call of its buffer.

    receive: launches it.  pending: the buffer's list of hooks that are due, one at most.  graph():
    what is being captured on the call's stream.
    """

    def __init__(self, receive, pending, graph):
        self._receive = receive
        self._pending = pending
        self._graph = graph
        self._graph_of_call = graph()
        pending.append(self)

    def __call__(self):
        receive = self._receive
        if receive is None:
            raise DeepEPError("hook: was called already")
        if self not in self._pending:
            raise DeepEPError("hook: its call was ended by reset() or destroy()")
        if self._graph() != self._graph_of_call:
            if not self._graph_of_call:
                raise DeepEPError("hook: its call was not captured; call it before the capture or "
                                  "after it")
            self._pending.clear()           # it cannot be called any more
            raise DeepEPError("hook: its call was captured, and the capture has ended: the graph "
                              "sends what nobody receives")
        self._receive = None
        self._pending.clear()
        receive()


class LowLatencyCalls:
    """The low-latency half of a `Buffer`, which brings what it shares with the other half."""

    def _init_low_latency(self, reduce):
        self._reduce = reduce               # None until the first call says how many choices
        self._shapes = {}                   # numbers of a shape -> it, on which all ranks agree
        self._hooks = []                    # the one that is due
        self._was_reset = threading.Event()     # since the dispatches made so far

    @property
    def reduce(self):
        """How `low_latency_combine` adds up: "exact" or "rank"; None before the first low-latency
        call of a buffer that was not told."""
        return self._reduce

    def _start_low_latency(self, nbytes):
        """Memory to start with; collective.  All ranks have low-latency mode, or none."""
        reduce = 0 if self._reduce is None else REDUCTIONS[self._reduce]
        self._symmetric.ensure_low_latency(Shape(0, 0, 0, 0, reduce, 0), nbytes)

    def _reset_low_latency(self):
        self._hooks.clear()
        self._was_reset.set()
        self._was_reset = threading.Event()

    def _check_no_hook(self):
        if self._hooks:
            raise DeepEPError("a receive hook is due: call it before the buffer's next call")

    def _agreed(self, call, max_tokens, hidden, num_experts, num_topk):
        """The `Shape` of such calls, for which there is memory; collective where it is new."""
        key = max_tokens, hidden, num_experts, num_topk
        shape = self._shapes.get(key)
        if shape is not None:
            return shape
        shape = _shape(*key[:2], self.group_size, *key[2:], self._reduce)
        room = self._core.ll_dispatch_smem
        if shape.smem > room:
            raise ValueError(f"x: hidden {hidden} and {num_experts} experts take {shape.smem} "
                             f"bytes of shared memory in a dispatch, a CTA has {room}")
        if self._core.look(call.stream):
            raise ValueError("num_max_dispatch_tokens_per_rank: the first call with these numbers "
                             "of tokens, values, experts and choices is for all ranks together, "
                             "and cannot be captured; make one before the capture")
        self._symmetric.ensure_low_latency(shape, shape.nbytes(self.group_size), call.stream)
        if self._reduce is None:
            self._reduce = default_reduce(self.group_size, num_topk)
        self._shapes[key] = shape
        return shape

    def _ll_sms(self, num_sms, units):
        """CTAs of a low-latency call that has work for so many."""
        if num_sms is not None:
            return self._fitting_sms(num_sms)
        return max(1, min(self._max_sms, units))

    def _low_latency_core(self):
        core = self._live_core()
        if not self.low_latency_mode:
            raise ValueError("low_latency_mode: must be True for low-latency calls")
        return core

    def _check_low_latency(self):
        core = self._low_latency_core()
        self._check_no_hook()
        return core

    @staticmethod
    def get_low_latency_rdma_size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks,
                                       num_experts, *, num_topk=HINT_TOPK, reduce=None):
        """Bytes of low-latency memory, `num_rdma_bytes` of a buffer, for calls with `num_topk`
        choices per token.  Where calls need more, the buffer makes more before the first of them.

        Args:
            num_max_dispatch_tokens_per_rank: most tokens of any rank.
            hidden: values of a row, a multiple of 128.
            num_ranks: of the group.
            num_experts: of all ranks.
            num_topk: choices of a token, at most 32.
            reduce: of the buffer.
        """
        return size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts,
                         num_topk=num_topk, reduce=reduce)

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank, hidden, num_experts):
        """Does nothing: words of earlier calls are told by their epochs, so there is nothing to
        clean.  Its arguments are checked."""
        self._live_core()
        _shape(num_max_dispatch_tokens_per_rank, hidden, self.group_size, num_experts, 1, None)

    def get_next_low_latency_combine_buffer(self, handle):
        """The array that `low_latency_combine` reads with `zero_copy` and this handle.

        Made by the first call for the handle, which keeps it, as memory of its library for that
        one's current stream; later calls give the same array.  Local.

        Args:
            handle: of `low_latency_dispatch`.

        Returns:
            bfloat16 [local_experts, R * num_max_dispatch_tokens_per_rank, hidden], rows as in
            recv_x, of no values yet.

        Raises:
            ValueError, TypeError, DeepEPError: the handle, as `low_latency_combine`.
        """
        core = self._low_latency_core()
        handle = self._check_ll_handle(handle)
        kept = vars(handle)             # of all that have its items
        if "combine_buffer" not in kept:
            call = Call.of_library(core.executor, handle.library, "handle")
            kept.setdefault("combine_buffer", call.empty(self._rows_of(handle), BFLOAT16).owner)
        return handle.combine_buffer

    def low_latency_update_mask_buffer(self, rank_to_mask, mask=False):
        """Not in this release: ranks cannot be masked.

        Raises:
            NotImplementedError: always.
        """
        self._refuse_masks("low_latency_update_mask_buffer")

    def low_latency_query_mask_buffer(self, mask_status):
        """Not in this release: ranks cannot be masked.

        Raises:
            NotImplementedError: always.
        """
        self._refuse_masks("low_latency_query_mask_buffer")

    def low_latency_clean_mask_buffer(self):
        """Not in this release: ranks cannot be masked.

        Raises:
            NotImplementedError: always.
        """
        self._refuse_masks("low_latency_clean_mask_buffer")

    def _refuse_masks(self, name):
        self._live_core()
        raise NotImplementedError(f"{name}: enable_shrink, which masks ranks, is not in this "
                                  "release")

    def low_latency_dispatch(self, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts,
                             cumulative_local_expert_recv_stats=None,
                             dispatch_wait_recv_cost_stats=None, use_fp8=True, round_scale=False,
                             use_ue8m0=False, async_finish=False, return_recv_hook=False, *,
                             x_global_scale=None, use_nvfp4=False, num_sms=None, stream=None):
        """Send each token to all its experts, of whichever ranks; collective.

        A token's row crosses once to each rank that has one of its experts, cast to FP8 on the
        way unless `use_fp8` is False: for every 128 values, amax = max(1e-4, largest |value|),
        element = value * (448 / amax), scale = amax * (1 / 448).

        Args:
            x: bfloat16 [num_tokens, hidden], hidden a multiple of 128 (of 512 with use_ue8m0).
            topk_idx: int64 or int32 [num_tokens, num_topk], num_topk in 1..32; -1 = unused.
            num_max_dispatch_tokens_per_rank: at least num_tokens of any rank; the same on all.
            num_experts: a multiple of the group's size; expert e lives on rank
                e // (num_experts / size).
            cumulative_local_expert_recv_stats: int32 [local_experts], to which recv_count is added;
                or None.
            dispatch_wait_recv_cost_stats: int64 [R], to which the clock cycles are added that the
                call waited for each rank; [R, R]: to this rank's row of it; or None.
            use_fp8: FP8 rows and scales; else bfloat16 rows.
            round_scale: scales are powers of two.
            use_ue8m0: and are returned as their exponents, four in an int32.
            async_finish: the caller's stream does not wait; the event does.
            return_recv_hook: launch only what sends; `hook()` launches what receives, on the
                stream of this call, and the results are there behind it.  No SM is held in
                between.  Not with async_finish.
            x_global_scale, use_nvfp4: None and False in this release.
            num_sms: CTAs of this call; None: as many as have work.
            stream: the caller's.

        Returns:
            recv_x: [local_experts, R * num_max_dispatch_tokens_per_rank, hidden]: bfloat16, or a
                pair of float8_e4m3fn rows and scales, float32 [local_experts, R * max, hidden /
                128] or int32 [.., hidden / 512], column-major in the last two dimensions.  Rows by
                source rank, then token, then choice; those past recv_count are unspecified.
            recv_count: int32 [local_experts], rows of each.
            handle: for `low_latency_combine`: (src_info int32 [local_experts, R * max], a row's
                token at its source; layout_range int64 [local_experts, R], first row << 32 | rows
                of each source; max, hidden, num_experts).
            event: `EventOverlap`.
            hook: a function, or None.

        Raises:
            ValueError, TypeError: an argument; nothing was launched.
            NotImplementedError: an argument that asks for what this release does not have.
            RankMismatchError: ranks gave different numbers.
            DeepEPError: a hook is due.
            DeepEPTimeoutError: another rank did not come; then `reset()`.
        """
        core = self._check_low_latency()
        if not (x_global_scale is None and use_nvfp4 is False):
            _check_absent(x_global_scale=x_global_scale)
            _check_off(use_nvfp4=use_nvfp4)
        call = Call(core.executor, x, "x", stream)
        sent = Sent()
        topk = sent.topk_idx = take_indices(call, topk_idx)
        num_tokens, num_topk = topk.shape
        rows = sent.x = call.take(x, "x", (BFLOAT16,), (num_tokens, "hidden"), ROW_ALIGN)
        max_tokens = check_int(num_max_dispatch_tokens_per_rank, "num_max_dispatch_tokens_per_rank",
                               1, MAX_TOKENS)
        if num_tokens > max_tokens:
            raise ValueError("x: must have at most num_max_dispatch_tokens_per_rank, "
                             f"{max_tokens}, tokens, got {num_tokens}")
        num_experts = check_int(num_experts, "num_experts", 1)
        cast = sent.cast = _cast(use_fp8, round_scale, use_ue8m0, rows.shape[1])
        num_ranks = self.group_size
        check_experts(num_experts, num_ranks, "num_experts")
        num_local = num_experts // num_ranks
        sent.recv_stats = _take_stats(call, cumulative_local_expert_recv_stats, INT32,
                                      "cumulative_local_expert_recv_stats", num_local)
        sent.wait_stats = self._take_waits(call, dispatch_wait_recv_cost_stats,
                                           "dispatch_wait_recv_cost_stats")
        return_recv_hook = _check_finish(async_finish, return_recv_hook)
        hidden = rows.shape[1]
        shape = self._agreed(call, max_tokens, hidden, num_experts, num_topk)
        num_sms = self._ll_sms(num_sms, _dispatch_ctas(num_tokens, num_ranks, hidden))
        launch = self._launch(call, num_sms, _OWN_RING, None, async_finish, False)
        slots = num_ranks * max_tokens
        if cast:
            sent.recv_x = call.empty((num_local, slots, hidden), call.library.fp8)
            groups = hidden // GROUP
            if cast & CAST_UE8M0:
                sent.recv_scales = call.empty((num_local, groups // PACKED_SCALES, slots), INT32)
            else:
                sent.recv_scales = call.empty((num_local, groups, slots), FLOAT32)
        else:
            sent.recv_x = call.empty((num_local, slots, hidden), BFLOAT16)
        sent.recv_count = call.empty((num_local,), INT32)
        sent.src_info = call.empty((num_local, slots), INT32)
        sent.layout_range = call.empty((num_local, num_ranks), INT64)
        sent.rows_of = call.empty((num_ranks, max_tokens, num_topk), INT32)
        sent.source_tokens = call.empty((num_ranks,), INT32)
        results = [array.owner for array in (
            sent.recv_x, sent.recv_scales, sent.recv_count, sent.src_info, sent.layout_range,
            sent.rows_of, sent.source_tokens) if array is not None]
        arguments = [x, topk_idx, cumulative_local_expert_recv_stats, dispatch_wait_recv_cost_stats]

        def run(phases, launch):
            return core_calls.dispatch(core, shape, sent, phases, launch)

        number, event, hook = self._launched(call, launch, run, return_recv_hook, arguments,
                                             results)
        recv_x = sent.recv_x.owner
        if cast:
            recv_x = recv_x, call.library.swapped(sent.recv_scales)
        handle = LowLatencyHandle._of(
            (sent.src_info.owner, sent.layout_range.owner, max_tokens, hidden, num_experts),
            {"rank": self.rank, "executor": core.executor.name, "num_ranks": num_ranks,
             "num_tokens": num_tokens, "num_topk": num_topk, "rows_of": sent.rows_of,
             "source_tokens": sent.source_tokens, "library": call.library, "number": number,
             "buffer_number": self._room.number,
             "was_reset": self._was_reset, "keeps": results})
        return recv_x, sent.recv_count.owner, handle, event, hook

    def low_latency_combine(self, x, topk_idx, topk_weights, handle, use_logfmt=False,
                            zero_copy=False, async_finish=False, return_recv_hook=False, out=None,
                            combine_wait_recv_cost_stats=None, *, overlap=False,
                            packed_recv_count=None, comp_signal=None, block_m=BLOCK_M,
                            threshold=NO_SIGNAL, src_signals=None,
                            src_signal_expect_value=NO_SIGNAL, num_sms=None, stream=None):
        """Add up what its experts made of each token, weighted; collective.

        With the buffer's `reduce` "exact": in float32, in the order of the choices, each value
        times its weight added with one rounding (fma), and rounded once to bfloat16.  With "rank":
        the same over the experts of each rank, then these sums in ascending order of the ranks.

        Args:
            x: bfloat16 [local_experts, R * max, hidden], rows as in recv_x.
            topk_idx: of the dispatch, of as many tokens.
            topk_weights: float32 [num_tokens, num_topk].
            handle: of the dispatch.
            use_logfmt: False in this release.
            zero_copy: the rows are read from the array of
                `get_next_low_latency_combine_buffer(handle)`, which must have been called; x is
                looked at for its shape alone.  Not with use_logfmt.
            async_finish, return_recv_hook, num_sms, stream: as in `low_latency_dispatch`.
            out: bfloat16 [num_tokens, hidden] to fill, or None.
            combine_wait_recv_cost_stats: as dispatch_wait_recv_cost_stats.
            overlap, packed_recv_count, comp_signal, block_m, threshold, src_signals,
            src_signal_expect_value: of builds of DeepEP whose combine begins while its x is being
                computed; as they are by default in this release.

        Returns:
            combined_x bfloat16 [num_tokens, hidden], event, hook.

        Raises:
            As `low_latency_dispatch`.
        """
        core = self._check_low_latency()
        # Nearly always: what is looked at one by one takes a microsecond.
        if not (use_logfmt is zero_copy is overlap is False
                and packed_recv_count is comp_signal is src_signals is None
                and block_m is BLOCK_M and threshold is src_signal_expect_value is NO_SIGNAL):
            zero_copy = as_bool(zero_copy, "zero_copy")
            if zero_copy and as_bool(use_logfmt, "use_logfmt"):
                raise ValueError("zero_copy: must be False with use_logfmt")
            _check_off(use_logfmt=use_logfmt, overlap=overlap)
            _check_absent(packed_recv_count=packed_recv_count, comp_signal=comp_signal,
                          src_signals=src_signals)
            _check_default(BLOCK_M, block_m=block_m)
            _check_default(NO_SIGNAL, threshold=threshold,
                           src_signal_expect_value=src_signal_expect_value)
        handle = self._check_ll_handle(handle)
        max_tokens, hidden, num_experts = handle[2:5]
        call = Call(core.executor, x, "x", stream)
        combined = Combined()
        num_topk = handle.num_topk
        rows = self._rows_of(handle)
        combined.x = call.take(x, "x", (BFLOAT16,), rows, ROW_ALIGN)
        buffer = None
        if zero_copy:
            buffer = vars(handle).get("combine_buffer")
            if buffer is None:
                raise ValueError("zero_copy: must be False where "
                                 "get_next_low_latency_combine_buffer(handle) was not called")
            combined.x = call.take(buffer, "zero_copy", (BFLOAT16,), rows, ROW_ALIGN)
        combined.x_row_bytes = hidden * combined.x.itemsize
        topk = combined.topk_idx = take_indices(call, topk_idx)
        num_tokens = topk.shape[0]
        if (num_tokens, topk.shape[1]) != (handle.num_tokens, num_topk):
            raise ValueError(f"topk_idx: must be [{handle.num_tokens}, {num_topk}], as in the "
                             f"dispatch, got {list(topk.shape)}")
        combined.topk_weights = take_weights(call, topk_weights, num_tokens, num_topk)
        combined.wait_stats = self._take_waits(call, combine_wait_recv_cost_stats,
                                               "combine_wait_recv_cost_stats")
        if out is not None:
            combined.out = _take_written(call, out, "out", BFLOAT16, (num_tokens, hidden),
                                         ROW_ALIGN)
        return_recv_hook = _check_finish(async_finish, return_recv_hook)
        shape = self._agreed(call, max_tokens, hidden, num_experts, num_topk)
        num_sms = self._ll_sms(num_sms, _combine_ctas(num_tokens, hidden))
        launch = self._launch(call, num_sms, _OWN_RING, None, async_finish, False)
        if out is None:
            combined.out = call.empty((num_tokens, hidden), BFLOAT16)
            out = combined.out.owner
        combined.rows_of, combined.source_tokens = handle.rows_of, handle.source_tokens
        call.take_again(combined.rows_of, handle.library, "handle")
        combined.handle = self._room.number_of(handle.number, handle.buffer_number)
        arguments = [x, topk_idx, topk_weights, combine_wait_recv_cost_stats, handle, buffer]

        def run(phases, launch):
            return None, core_calls.combine(core, shape, combined, phases, launch)

        _, event, hook = self._launched(call, launch, run, return_recv_hook, arguments, [out])
        return out, event, hook

    def _launched(self, call, launch, run, return_recv_hook, arguments, results):
        """Launches a call, or the part of it that sends.  Returns (its number, event, hook)."""
        if return_recv_hook:
            number, mappings = run(SEND, launch)
            kept = [mappings]

            def receive():
                kept.append(run(RECEIVE, launch)[1])

            return number, EventOverlap(), ReceiveHook(
                receive, self._hooks, functools.partial(self._core.look, call.stream))
        number, mappings = run(_BOTH, launch)
        event = EventOverlap()
        if launch.detached:
            flight = self._in_flight.depart(launch, call, mappings, arguments)
            event = self._in_flight.announce(flight, call, results)
        return number, event, None

    def _rows_of(self, handle):
        """Shape of a handle's rows."""
        max_tokens, hidden, num_experts = handle[2:5]
        return num_experts // self.group_size, self.group_size * max_tokens, hidden

    def _check_ll_handle(self, handle):
        if not isinstance(handle, LowLatencyHandle):
            handle = LowLatencyHandle._again(handle, "handle")
        if handle.executor != self._core.executor.name or handle.num_ranks != self.group_size:
            raise ValueError(f"handle: made by {handle.num_ranks} ranks on executor "
                             f"{handle.executor!r}, this buffer has {self.group_size} on "
                             f"{self._core.executor.name!r}")
        if handle.rank != self.rank:
            raise ValueError(f"handle: made by rank {handle.rank}, this is rank {self.rank}")
        if handle.was_reset.is_set():       # its dispatch may be what failed
            raise DeepEPError("handle: its dispatch came before a reset() of its buffer")
        return handle

    def _take_waits(self, call, stats, name):
        """int64 [R], or this rank's row of [R, R], as an `Array`; None."""
        size, is_square = self.group_size, False
        with contextlib.suppress(AttributeError, TypeError):    # `take` says what it is
            is_square = len(stats.shape) == 2
        if not is_square:
            return _take_stats(call, stats, INT64, name, size)
        whole = _take_written(call, stats, name, INT64, (size, size))
        return Array(whole.owner, whole.address + self.rank * size * whole.itemsize, (size,),
                     whole.dtype, whole.device)


def _check_off(**flags):
    """Flags of what this release does not have."""
    for name, value in flags.items():
        if as_bool(value, name):
            raise NotImplementedError(f"{name}: must be False in this release")


def _check_absent(**arguments):
    """Arguments of what this release does not have."""
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"{name}: must be None in this release, got "
                                      f"{type(value).__name__}")


def _check_default(default, **numbers):
    """Numbers that say something of what this release does not have."""
    for name, value in numbers.items():
        if as_int(value, name) != default:
            raise NotImplementedError(f"{name}: must be {default} in this release, got {value}")


def _check_finish(async_finish, return_recv_hook):
    """`return_recv_hook` as a bool."""
    return_recv_hook = as_bool(return_recv_hook, "return_recv_hook")
    if as_bool(async_finish, "async_finish") and return_recv_hook:
        raise ValueError("return_recv_hook: must be False with async_finish")
    return return_recv_hook


def _take_stats(call, stats, dtype, name, length):
    return None if stats is None else _take_written(call, stats, name, dtype, (length,))


def _take_written(call, value, name, dtype, shape, align=1):
    """The `Array` of an argument that the call writes to."""
    array = call.take(value, name, (dtype,), shape, align)
    if call.library.is_read_only(value):
        raise ValueError(f"{name}: must be writable, the call stores to it")
    return array


def _cast(use_fp8, round_scale, use_ue8m0, hidden):
    """CAST_* of a dispatch."""
    use_fp8, round_scale, use_ue8m0 = (
        as_bool(use_fp8, "use_fp8"), as_bool(round_scale, "round_scale"),
        as_bool(use_ue8m0, "use_ue8m0"))
    if use_ue8m0 and not (use_fp8 and round_scale):
        raise ValueError("use_ue8m0: must be False without use_fp8 and round_scale")
    if hidden == 0 or hidden % GROUP:
        raise ValueError(f"x: hidden must be a multiple of {GROUP} and at least that, got {hidden}")
    if use_ue8m0 and hidden % (PACKED_SCALES * GROUP):
        raise ValueError(f"x: hidden must be a multiple of {PACKED_SCALES * GROUP} with use_ue8m0, "
                         f"got {hidden}")
    if not use_fp8:
        return 0
    return CAST_FP8 | (CAST_ROUND if round_scale else 0) | (CAST_UE8M0 if use_ue8m0 else 0)


def _dispatch_ctas(num_tokens, num_ranks, hidden):
    """CTAs that have a row to receive, if ranks have as many tokens, or warps' parts to send."""
    return max(num_tokens * num_ranks, num_tokens * hidden // (16 * 2 * GROUP))


def _combine_ctas(num_tokens, hidden):
    """CTAs whose warps have a part of a row to give or to add up."""
    return -(-2 * num_tokens * hidden // (32 * 6 * 24))
