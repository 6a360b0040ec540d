# SPDX-License-Identifier: MIT
"""The low-latency calls of a buffer: arguments checked, results made, launched.

In Cython for the time that it takes: the host has less of it here than in any other call.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from gen.params cimport (
    EP_LL_CAST_FP8, EP_LL_CAST_ROUND, EP_LL_CAST_UE8M0, EP_LL_GROUP, EP_LL_PIECE,
    EP_LL_RECEIVE, EP_LL_REDUCE_EXACT, EP_LL_SEND, EP_MAX_TOKENS, EP_ROW_ALIGN,
)

from deepep_ptx._arguments cimport Launch, as_flag, take_indices, take_weights
from deepep_ptx._array cimport Array, Form
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._call cimport Call, call_of
from deepep_ptx._launcher cimport Launcher
from deepep_ptx._low_latency cimport Combined, Sent, Shape, combine, dispatch

from deepep_ptx._arguments import check_experts
from deepep_ptx._low_latency import PACKED_SCALES
from deepep_ptx.arrays.dtypes import BFLOAT16, INT32, INT64
from deepep_ptx.checks import check_int
from deepep_ptx.errors import DeepEPError
from deepep_ptx.event import EventOverlap
from deepep_ptx.handle import LowLatencyHandle
from deepep_ptx.launch_choice import OWN_RING

cdef tuple ROWS = (BFLOAT16,)
cdef tuple COUNTS = (INT32,)
cdef tuple CYCLES = (INT64,)


@cython.final
cdef class Life:
    """From a buffer's beginning, or a reset, to the next reset: what was dispatched in it."""

    cdef bint over


@cython.final
cdef class Dispatched:
    """What a handle keeps of its dispatch; `handle.LowLatencyHandle` says what it is."""

    cdef readonly uint32_t rank
    cdef readonly uint32_t num_ranks
    cdef readonly str executor
    cdef readonly uint32_t num_tokens
    cdef readonly uint32_t num_topk
    cdef readonly Array places
    cdef readonly object library
    cdef readonly uint64_t number
    cdef readonly object buffer_number
    cdef readonly object combine_buffer
    cdef Shape shape
    cdef Life life


@cython.final
cdef class ReceiveHook:
    """The second part of a low-latency call: call it once, and before the next call of its buffer.
    """

    cdef CoreBuffer core
    cdef list due               # the buffer's hooks that are, one at most
    cdef Shape shape
    cdef object given           # `Sent` or `Combined`; None once it was called
    cdef Launch launch
    cdef list kept              # what must stay until the call has ended

    def __call__(self):
        if self.given is None:
            raise DeepEPError("hook: was called already")
        if self not in self.due:
            raise DeepEPError("hook: its call was ended by reset() or destroy()")
        if self.core.look(self.launch.stream) != self.launch.graph:
            if self.launch.graph == 0:
                raise DeepEPError("hook: its call was not captured; call it before the capture or "
                                  "after it")
            self.due.clear()                # it cannot be called any more
            raise DeepEPError("hook: its call was captured, and the capture has ended: the graph "
                              "sends what nobody receives")
        given, self.given = self.given, None
        self.due.clear()
        self.kept.append(receive(self.core, self.shape, given, self.launch))


cdef object receive(CoreBuffer core, Shape shape, given, Launch launch):
    cdef uint64_t known         # since the launch that has sent
    if type(given) is Combined:
        return combine(core, shape, given, EP_LL_RECEIVE, launch)
    return dispatch(core, shape, given, EP_LL_RECEIVE, launch, &known)


@cython.final
cdef class LowLatency:
    """Those of one buffer, whose arguments `deepep_ptx.low_latency` names.

    launcher, in_flight, room: the buffer's.  agreement: `low_latency.Agreement`.  due: its hooks
    that are due.
    """

    cdef CoreBuffer core
    cdef object executor        # as Python sees it, and its name
    cdef str executor_name
    cdef Launcher launcher
    cdef object in_flight
    cdef object room
    cdef object agreement
    cdef list due
    cdef Life life
    cdef Shape newest           # of dispatch
    cdef Form combined_x        # of the newest combine that made one

    def __init__(self, Launcher launcher not None, in_flight, room, agreement, list due not None):
        self.core = launcher.core
        self.executor = launcher.core.executor
        self.executor_name = self.executor.name
        self.launcher = launcher
        self.in_flight = in_flight
        self.room = room
        self.agreement = agreement
        self.due = due
        self.life = Life()

    def reset(self):
        """Earlier handles are of no use any more."""
        self.life.over = True
        self.life = Life()

    def check_no_hook(self):
        """`DeepEPError` where one is due."""
        if self.due:
            raise DeepEPError("a receive hook is due: call it before the buffer's next call")

    # -- dispatch ------------------------------------------------------------------------------

    def dispatch(self, x, topk_idx, max_tokens, num_experts, recv_stats, wait_stats, use_fp8,
                 round_scale, use_ue8m0, async_finish, return_recv_hook, num_sms, stream):
        """See `Buffer.low_latency_dispatch`."""
        cdef Sent sent = Sent()
        cdef Call call
        cdef Launch launch
        cdef Shape shape
        cdef Dispatched made
        cdef list arrays
        cdef uint32_t num_tokens, num_topk, hidden, num_ranks = self.core.num_ranks
        cdef uint64_t number = 0
        cdef bint hooks
        self.check_no_hook()
        call = call_of(self.executor, x, "x", stream)
        sent.topk_idx = take_indices(call, topk_idx)
        num_tokens, num_topk = sent.topk_idx.shape
        sent.x = call.take(x, "x", ROWS, (sent.topk_idx.shape[0], "hidden"), EP_ROW_ALIGN)
        hidden = sent.x.shape[1]
        shape = self.newest
        if not is_of(shape, max_tokens, hidden, num_experts, num_topk):
            shape = None
            max_tokens = check_int(max_tokens, "num_max_dispatch_tokens_per_rank", 1,
                                   EP_MAX_TOKENS)
        if num_tokens > max_tokens:
            raise ValueError("x: must have at most num_max_dispatch_tokens_per_rank, "
                             f"{max_tokens}, tokens, got {num_tokens}")
        if shape is None:
            num_experts = check_int(num_experts, "num_experts", 1)
        sent.cast = cast_of(use_fp8, round_scale, use_ue8m0, hidden)
        if shape is None:
            check_experts(num_experts, num_ranks, "num_experts")
        if recv_stats is not None:
            sent.recv_stats = take_written(call, recv_stats, "cumulative_local_expert_recv_stats",
                                           COUNTS, (num_experts // num_ranks,))
        if wait_stats is not None:
            sent.wait_stats = self.take_waits(call, wait_stats, "dispatch_wait_recv_cost_stats")
        hooks = hook_of(async_finish, return_recv_hook)
        if shape is None:
            shape = self.newest = self.agreement.of(call, max_tokens, hidden, num_experts, num_topk)
        # CTAs that have a row to receive, if ranks have as many tokens, or warps' parts to send.
        launch = self.launch(call, num_sms, async_finish, max(
            <uint64_t>num_tokens * num_ranks,
            <uint64_t>num_tokens * hidden // (16 * 2 * EP_LL_GROUP)))

        arrays = call.make(shape.results(sent.cast, call.library.fp8))
        sent.recv_count = arrays[0]
        sent.src_info = arrays[1]
        sent.layout_range = arrays[2]
        sent.places = arrays[3]
        sent.recv_x = arrays[4]
        recv_x = sent.recv_x.owner
        if sent.cast:
            sent.recv_scales = arrays[5]
            recv_x = recv_x, sent.recv_scales.owner
        mappings = dispatch(self.core, shape, sent, phases_of(hooks), launch, &number)
        event, hook = EventOverlap(), None
        if hooks:
            hook = self.hook(shape, sent, launch, mappings)
        elif launch.detached:
            event = self.depart(launch, call, mappings, [x, topk_idx, recv_stats, wait_stats],
                                [array.owner for array in arrays])

        made = Dispatched.__new__(Dispatched)
        made.rank = self.core.rank
        made.num_ranks = num_ranks
        made.executor = self.executor_name
        made.num_tokens = num_tokens
        made.num_topk = num_topk
        made.places = sent.places
        made.library = call.library
        made.number = number
        made.buffer_number = self.room.number
        made.shape = shape
        made.life = self.life
        handle = LowLatencyHandle._of((sent.src_info.owner, sent.layout_range.owner, max_tokens,
                                       hidden, num_experts), made)
        return recv_x, sent.recv_count.owner, handle, event, hook

    # -- combine -------------------------------------------------------------------------------

    def combine(self, x, topk_idx, topk_weights, handle, use_logfmt, zero_copy, async_finish,
                return_recv_hook, out, wait_stats, num_sms, stream):
        """See `Buffer.low_latency_combine`."""
        cdef Dispatched sent
        cdef Combined combined = Combined()
        cdef Call call
        cdef Launch launch
        cdef Shape shape
        cdef tuple rows
        cdef uint32_t hidden
        cdef uint64_t num_tokens
        cdef bint hooks
        self.check_no_hook()
        handle = self.checked(handle)
        sent = handle[5].attributes
        shape, rows, hidden = sent.shape, sent.shape.rows(), sent.shape.shape.hidden
        call = call_of(self.executor, x, "x", stream)
        combined.x = call.take(x, "x", ROWS, rows, EP_ROW_ALIGN)
        buffer = None
        if zero_copy:
            buffer = sent.combine_buffer
            if buffer is None:
                raise ValueError("zero_copy: must be False where "
                                 "get_next_low_latency_combine_buffer(handle) was not called")
            combined.x = call.take(buffer, "zero_copy", ROWS, rows, EP_ROW_ALIGN)
        combined.x_row_bytes = hidden * combined.x.itemsize
        combined.topk_idx = take_indices(call, topk_idx)
        num_tokens = combined.topk_idx.shape[0]
        if num_tokens != sent.num_tokens or combined.topk_idx.shape[1] != sent.num_topk:
            raise ValueError(f"topk_idx: must be [{sent.num_tokens}, {sent.num_topk}], as in the "
                             f"dispatch, got {list(combined.topk_idx.shape)}")
        combined.topk_weights = take_weights(call, topk_weights, num_tokens, sent.num_topk)
        if wait_stats is not None:
            combined.wait_stats = self.take_waits(call, wait_stats, "combine_wait_recv_cost_stats")
        if out is not None:
            combined.out = take_written(call, out, "out", ROWS, (num_tokens, hidden), EP_ROW_ALIGN)
        hooks = hook_of(async_finish, return_recv_hook)
        if sent.buffer_number != self.room.number:
            shape = self.agreement.of(call, *handle[2:5], sent.num_topk)
        if use_logfmt:
            check_logfmt(shape)
            combined.logfmt = True
        # CTAs whose warps have a part of a row to give or to add up.
        launch = self.launch(call, num_sms, async_finish,
                             (2 * num_tokens * hidden + PARTS - 1) // PARTS)
        if out is None:
            combined.out = self.new_output(call, num_tokens, hidden)
            out = combined.out.owner
        combined.places = sent.places
        call.take_again(combined.places, sent.library, "handle")
        combined.handle = self.room.number_of(sent.number, sent.buffer_number)
        mappings = combine(self.core, shape, combined, phases_of(hooks), launch)
        event, hook = EventOverlap(), None
        if hooks:
            hook = self.hook(shape, combined, launch, mappings)
        elif launch.detached:
            event = self.depart(launch, call, mappings, [
                x, topk_idx, topk_weights, wait_stats, handle, buffer], [out])
        return out, event, hook

    def combine_buffer(self, handle):
        """See `Buffer.get_next_low_latency_combine_buffer`."""
        cdef Dispatched sent = self.checked(handle)[5].attributes
        if sent.combine_buffer is None:
            call = Call.of_library(self.executor, sent.library, "handle")
            made = call.empty(sent.shape.rows(), BFLOAT16).owner
            if sent.combine_buffer is None:     # another thread may have been here
                sent.combine_buffer = made
        return sent.combine_buffer

    cdef object checked(self, handle):
        # The handle itself, or the one that it has the items of, which this rank can use.
        cdef Dispatched sent
        if type(handle) is not LowLatencyHandle:
            handle = LowLatencyHandle._again(handle, "handle")
        sent = handle[5].attributes
        if sent.executor != self.executor_name or sent.num_ranks != self.core.num_ranks:
            raise ValueError(f"handle: made by {sent.num_ranks} ranks on executor "
                             f"{sent.executor!r}, this buffer has {self.core.num_ranks} on "
                             f"{self.executor_name!r}")
        if sent.rank != self.core.rank:
            raise ValueError(f"handle: made by rank {sent.rank}, this is rank {self.core.rank}")
        if sent.life.over:              # its dispatch may be what failed
            raise DeepEPError("handle: its dispatch came before a reset() of its buffer")
        return handle

    cdef Array new_output(self, Call call, uint64_t num_tokens, uint32_t hidden):
        cdef Form form = self.combined_x
        if form is None or form.shape != (num_tokens, hidden):
            form = self.combined_x = Form((num_tokens, hidden), BFLOAT16)
        return call.make((form,))[0]

    # -- both ----------------------------------------------------------------------------------

    cdef Launch launch(self, Call call, num_sms, async_finish, uint64_t units):
        # Of a call that has work for so many CTAs.
        if num_sms is None:
            num_sms = max(<uint64_t>1, min(<uint64_t>self.launcher.max_sms, units))
        else:
            num_sms = self.launcher.fitting_sms(num_sms)
        return self.launcher.launch(call, num_sms, OWN_RING, None, async_finish, False)

    cdef ReceiveHook hook(self, Shape shape, given, Launch launch, mappings):
        cdef ReceiveHook hook = ReceiveHook.__new__(ReceiveHook)
        hook.core = self.core
        hook.due = self.due
        hook.shape = shape
        hook.given = given
        hook.launch = launch
        hook.kept = [mappings]
        self.due.append(hook)
        return hook

    cdef object depart(self, Launch launch, Call call, mappings, list arguments, list results):
        # The event of a call whose end nobody waits for.
        flight = self.in_flight.depart(launch, call, mappings, arguments)
        return self.in_flight.announce(flight, call, results)

    cdef Array take_waits(self, Call call, stats, str name):
        # int64 [R], or this rank's row of [R, R].
        cdef Array whole
        cdef uint32_t size = self.core.num_ranks
        if not is_square(stats):
            return take_written(call, stats, name, CYCLES, (size,))
        whole = take_written(call, stats, name, CYCLES, (size, size))
        return Array(whole.owner, whole.address + self.core.rank * size * whole.itemsize, (size,),
                     whole.dtype, whole.device)


cdef enum:
    PARTS = 32 * 6 * 24         # values of rows that a CTA has at once in combine


cdef bint is_of(Shape shape, max_tokens, uint32_t hidden, num_experts, uint32_t num_topk) except -1:
    # Whether a call of these numbers is of the shape; then they need no further look.
    return (shape is not None and type(max_tokens) is int and type(num_experts) is int
            and shape.shape.hidden == hidden and shape.shape.num_topk == num_topk
            and max_tokens == shape.shape.max_tokens and num_experts == shape.shape.num_experts)


cdef uint32_t phases_of(bint hooks) noexcept:
    return EP_LL_SEND if hooks else EP_LL_SEND | EP_LL_RECEIVE


cdef bint hook_of(async_finish, return_recv_hook) except -1:
    # Whether there is to be one.
    cdef bint hooks = as_flag(return_recv_hook, "return_recv_hook")
    if as_flag(async_finish, "async_finish") and hooks:
        raise ValueError("return_recv_hook: must be False with async_finish")
    return hooks


cdef bint is_square(stats) except -1:
    try:
        return len(stats.shape) == 2
    except (AttributeError, TypeError):     # `take` says what it is
        return False


cpdef Array take_written(Call call, value, str name, tuple dtypes, tuple shape, unsigned align=1):
    """The `Array` of an argument that the call writes to."""
    cdef Array array = call.take(value, name, dtypes, shape, align)
    if call.library.is_read_only(value):
        raise ValueError(f"{name}: must be writable, the call stores to it")
    return array


cdef int check_logfmt(Shape shape) except -1:
    # Rows of the shape can cross in LogFMT-10.
    if shape.shape.reduce != EP_LL_REDUCE_EXACT:
        raise ValueError("use_logfmt: must be False in a buffer with reduce='rank', whose float32 "
                         "sums cross in the place of rows; make it with reduce='exact'")
    if shape.shape.hidden % EP_LL_PIECE:
        raise ValueError(f"x: hidden must be a multiple of {EP_LL_PIECE} with use_logfmt, got "
                         f"{shape.shape.hidden}")
    return 0


cdef int64_t cast_of(use_fp8, round_scale, use_ue8m0, uint32_t hidden) except -1:
    # CAST_* of a dispatch.
    cdef bint fp8 = as_flag(use_fp8, "use_fp8")
    cdef bint rounds = as_flag(round_scale, "round_scale")
    cdef bint ue8m0 = as_flag(use_ue8m0, "use_ue8m0")
    if ue8m0 and not (fp8 and rounds):
        raise ValueError("use_ue8m0: must be False without use_fp8 and round_scale")
    if hidden == 0 or hidden % EP_LL_GROUP:
        raise ValueError(f"x: hidden must be a multiple of {EP_LL_GROUP} and at least that, got "
                         f"{hidden}")
    if ue8m0 and hidden % (PACKED_SCALES * EP_LL_GROUP):
        raise ValueError(f"x: hidden must be a multiple of {PACKED_SCALES * EP_LL_GROUP} with "
                         f"use_ue8m0, got {hidden}")
    if not fp8:
        return 0
    return (EP_LL_CAST_FP8 | (EP_LL_CAST_ROUND if rounds else 0)
            | (EP_LL_CAST_UE8M0 if ue8m0 else 0))
