# SPDX-License-Identifier: MIT
"""The arguments of a call, checked, as the core takes them.

The text of an error begins with the argument's name.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from gen.params cimport (
    EP_MAX_CHOICE_ROWS, EP_MAX_HIDDEN, EP_MAX_LOCAL_EXPERTS, EP_MAX_TOKENS, EP_MAX_TOPK,
    EP_ROW_ALIGN,
)

from deepep_ptx._array cimport Array
from deepep_ptx._call cimport Call
from deepep_ptx._executor cimport Event

from deepep_ptx._array import span_of
from deepep_ptx.arrays.dtypes import (
    BFLOAT16, BOOL, FLOAT32, INT32, INT64, ROW_CODES, SCALE_ITEMSIZES, code_of, name_of,
    values_of, why_unknown,
)
from deepep_ptx.checks import as_bool
from deepep_ptx.handle import EPHandle

cdef enum:
    SCALE_WORD = 4      # most bytes of scales that are moved as one

cdef tuple COMBINED = (BFLOAT16,)
cdef tuple COUNTS = (INT32,)
cdef tuple INDICES = (INT64, INT32)
cdef tuple MEMBERSHIP = (BOOL,)
cdef tuple WEIGHTS = (FLOAT32,)


@cython.final
cdef class Launch:
    """How a call is launched.

    stream: the caller's, a number: its arrays are ready and its results are used there.
    previous: an `Event` that the kernels run after, None: after what `stream` has queued.
    num_sms: CTAs.  wait: the host waits for the end.  detached: `stream` does not wait for it.
    graph: what is being captured on `stream`, as `CoreBuffer.look` says.
    stages, stage_bytes: of each ring for bulk copies, 0: the kernel's own.
    started: an `Event` that a dispatch or combine records when all its CTAs have begun, or later.
    """

    def __init__(self, size_t stream, Event previous, uint32_t num_sms, bint wait, bint detached,
                 size_t graph, uint32_t stages=0, uint32_t stage_bytes=0, Event started=None):
        self.stream = stream
        self.previous = previous
        self.num_sms = num_sms
        self.wait = wait
        self.detached = detached
        self.graph = graph
        self.stages = stages
        self.stage_bytes = stage_bytes
        self.started = started

    @property
    def captured(self):
        """Whether the call runs with a graph."""
        return self.graph != 0


cdef bint as_flag(value, str name) except -1:
    if value is True:
        return True
    return False if value is False else as_bool(value, name)


# -- rows ---------------------------------------------------------------------------------------

@cython.final
cdef class Rows:
    """What a dispatch moves.

    array: [num_tokens, columns].  code: of its dtype and its scales', equal on all ranks.
    hidden: values of a row, more than its columns where an element is known to pack several.
    scales: None, or [num_tokens, num_scales] in any `strides` (bytes, two).
    scale_bytes: of a row's scales, 0 without.  scale_width: 1, 2 or 4 bytes that are moved as one,
    from one `strides[1]` to the next.
    """

    def __init__(self, Array array not None, uint32_t code, Array scales=None):
        self.array = array
        self.code = code
        self.hidden = array.shape[1] * values_of(array.dtype)
        self.scales = scales
        if scales is not None:
            self.scale_bytes = scales.shape[1] * scales.itemsize
            self.strides = tuple(scales.strides)
            self.scale_width = scales.itemsize
            self.widen()

    cdef int widen(self) except -1:
        # Scales that lie side by side are moved several at once, as far as all of them are aligned.
        cdef int64_t row, step
        row, step = self.strides
        if step != <int64_t>self.scale_width and self.scale_bytes != self.scale_width:
            return 0
        while self.scale_width < SCALE_WORD and (
                (self.scales.address | <uint64_t>row | self.scale_bytes)
                & (2 * self.scale_width - 1)) == 0:
            self.scale_width *= 2
        self.strides = (row, self.scale_width)
        return 0

    @property
    def row_bytes(self):
        """Of a row of x."""
        return self.array.shape[1] * self.array.itemsize

    @property
    def span(self):
        """(first, end): bytes of the scales' memory, from the first element's address."""
        if self.scales is None:
            return 0, 0
        return span_of(self.scales.shape, self.scales.strides, self.scales.itemsize)


def first_array(x):
    """The array of `x` that says of which library a dispatch is: x, or the first of a pair."""
    if not isinstance(x, tuple):
        return x
    if len(x) != 2:
        raise ValueError(f"x: must be one array or a pair (x, scales), got a tuple of {len(x)}")
    return x[0]


def take_rows(Call call not None, x, num_tokens="num_tokens"):
    """`Rows` of dispatch's x: an array of any known type, or a pair with scales."""
    cdef Array array = take_matrix(call, first_array(x), None, num_tokens)
    cdef Array scales
    check_at_most(array.shape[0], EP_MAX_TOKENS, "x: num_tokens")
    if not isinstance(x, tuple):
        return Rows(array, ROW_CODES[array.dtype])
    scales = call.take(x[1], "x[1]", None, (array.shape[0], "num_scales"), 1, True)
    if scales.dtype not in ROW_CODES:
        raise TypeError(f"x[1]: dtype {why_unknown(scales.dtype)}")
    if scales.itemsize not in SCALE_ITEMSIZES:
        raise TypeError("x[1]: dtype must be of 1, 2 or 4 bytes, got "
                        f"{name_of(scales.dtype)}")
    if scales.shape[1] == 0:
        raise ValueError("x[1]: num_scales must be at least 1, got 0")
    check_at_most(scales.shape[1], EP_MAX_HIDDEN, "x[1]: num_scales")
    if any([step % scales.itemsize for step in scales.strides]):
        raise ValueError(f"x[1]: strides must be multiples of {scales.itemsize} bytes, got "
                         f"{list(scales.strides)}")
    return Rows(array, code_of(array.dtype, scales.dtype), scales)


def take_output(Call call not None, x, handle):
    """The expert output that combine adds up, as `Array`."""
    return take_matrix(call, x, COMBINED, handle.num_recv)


cdef int check_at_most(uint64_t number, uint64_t most, str what) except -1:
    # Where the kernels' 32-bit arithmetic ends (params.h).
    if number > most:
        raise ValueError(f"{what} must be at most {most}, got {number}")
    return 0


cdef Array take_matrix(Call call, x, tuple dtypes, rows):
    cdef Array array = call.take(x, "x", dtypes, (rows, "hidden"), EP_ROW_ALIGN)
    cdef uint64_t hidden = array.shape[1]
    if array.dtype not in ROW_CODES:
        raise TypeError(f"x: dtype {why_unknown(array.dtype)}")
    if hidden == 0 or hidden * array.itemsize % EP_ROW_ALIGN:
        raise ValueError(f"x: hidden must be a multiple of {EP_ROW_ALIGN // array.itemsize} and at "
                         f"least that, got {hidden}")
    # It takes a few ns less to know that it would not be too large if each bit were a value.
    if hidden > EP_MAX_HIDDEN // (8 * array.itemsize):
        check_at_most(hidden * values_of(array.dtype), EP_MAX_HIDDEN, "x: hidden")
    return array


# -- layout -------------------------------------------------------------------------------------

def check_experts(num_experts, uint32_t num_ranks, str name not None):
    """A number of experts that num_ranks ranks can share out."""
    num_local = num_experts // num_ranks
    if num_experts == 0 or num_experts % num_ranks or num_local > EP_MAX_LOCAL_EXPERTS:
        raise ValueError(
            f"{name}: number of experts must be a multiple of the {num_ranks} ranks, at "
            f"most {EP_MAX_LOCAL_EXPERTS} per rank and at least 1, got {num_experts}"
        )


def take_layout(Call call not None, per_rank, per_expert, in_rank, num_tokens, num_ranks):
    """The `Array`s is_token_in_rank, num_tokens_per_rank and num_tokens_per_expert."""
    cdef Array rank_counts, expert_counts
    for name, value in (("num_tokens_per_rank", per_rank), ("num_tokens_per_expert", per_expert),
                        ("is_token_in_rank", in_rank)):
        if value is None:
            raise TypeError(f"{name}: must be given without a handle; get_dispatch_layout "
                            "returns it")
    rank_counts = call.take(per_rank, "num_tokens_per_rank", COUNTS, (num_ranks,))
    expert_counts = call.take(per_expert, "num_tokens_per_expert", COUNTS, ("num_experts",))
    check_experts(expert_counts.shape[0], num_ranks, "num_tokens_per_expert")
    return (call.take(in_rank, "is_token_in_rank", MEMBERSHIP, (num_tokens, num_ranks)),
            rank_counts, expert_counts)


# -- top-k, biases ------------------------------------------------------------------------------

def check_topk(uint64_t num_topk, str name="topk_idx"):
    """A number of choices per token that a warp has lanes for."""
    if not 1 <= num_topk <= EP_MAX_TOPK:
        raise ValueError(f"{name}: num_topk must be in [1, {EP_MAX_TOPK}], got {num_topk}")


cpdef Array take_indices(Call call, topk_idx, num_tokens="num_tokens"):
    """The `Array` of topk_idx."""
    cdef Array array = call.take(topk_idx, "topk_idx", INDICES, (num_tokens, "num_topk"))
    check_topk(array.shape[1])
    check_at_most(array.shape[0], EP_MAX_TOKENS, "topk_idx: num_tokens")
    return array


cpdef Array take_weights(Call call, topk_weights, num_rows, num_topk="num_topk"):
    """The `Array` of topk_weights."""
    cdef Array array = call.take(topk_weights, "topk_weights", WEIGHTS, (num_rows, num_topk))
    check_topk(array.shape[1], "topk_weights")
    check_at_most(array.shape[0], EP_MAX_CHOICE_ROWS, "topk_weights: number of rows")
    return array


def take_topk(Call call not None, topk_idx, topk_weights, num_tokens):
    """The pair as `Array`s, or (None, None)."""
    cdef Array indices
    if topk_idx is None and topk_weights is None:
        return None, None
    for name, value in (("topk_idx", topk_idx), ("topk_weights", topk_weights)):
        if value is None:
            raise ValueError(f"{name}: topk_idx and topk_weights must both be given, or neither")
    indices = take_indices(call, topk_idx, num_tokens)
    return indices, take_weights(call, topk_weights, *indices.shape)


def take_bias(Call call not None, bias, num_tokens, hidden):
    """Two `Array`s or None; one alone is the first."""
    cdef tuple shape
    cdef list given
    if bias is None:
        return None, None
    shape = (num_tokens, hidden)
    if not isinstance(bias, tuple):
        return call.take(bias, "bias", COMBINED, shape, EP_ROW_ALIGN), None
    if len(bias) != 2:
        raise ValueError(f"bias: must be None, one array or a pair, got {len(bias)}")
    given = [call.take(one, f"bias[{i}]", COMBINED, shape, EP_ROW_ALIGN)
             for i, one in enumerate(bias) if one is not None]
    return (*given, None, None)[:2]


# -- handles ------------------------------------------------------------------------------------

@cython.final
cdef class Placement:
    """Where the rows of a dispatch go.

    pos int32 [T, R], rank_prefix int32 [R, R], arrays of `library`.  handle: number of the call
    that filled them, 0: they are to be filled, from in_rank bool [T, R], rank_counts int32 [R] and
    expert_counts int32 [num_experts].  rows: of the result, with a handle.
    """

    def __init__(self, library, Array pos not None, Array rank_prefix not None, Array in_rank=None,
                 Array rank_counts=None, Array expert_counts=None, *, uint64_t handle=0,
                 uint32_t rows=0):
        self.library = library
        self.pos = pos
        self.rank_prefix = rank_prefix
        self.in_rank = in_rank
        self.rank_counts = rank_counts
        self.expert_counts = expert_counts
        self.num_experts = 0 if expert_counts is None else expert_counts.shape[0]
        self.handle = handle
        self.rows = rows

    @property
    def num_ranks(self):
        """Of the group."""
        return self.rank_prefix.shape[0]

    def filled(self, uint64_t number, uint32_t rows):
        """As call `number` has filled it, for calls with its handle."""
        cdef Placement made = Placement(self.library, self.pos, self.rank_prefix)
        made.handle = number
        made.rows = rows
        return made


def check_handle(handle, executor, uint32_t rank, uint32_t num_ranks):
    """`handle` itself, or the one that it has the items of, which rank `rank` of `num_ranks` can
    use on `executor`."""
    if not isinstance(handle, EPHandle):
        handle = EPHandle._again(handle, "handle")
    if handle.executor != executor.name:
        raise ValueError(f"handle: made on executor {handle.executor!r}, this buffer is on "
                         f"{executor.name!r}")
    if handle.placement.num_ranks != num_ranks:
        raise ValueError(f"handle: made by a group of {handle.placement.num_ranks} ranks, this one "
                         f"has {num_ranks}")
    if handle.rank != rank:
        raise ValueError(f"handle: made by rank {handle.rank}, this is rank {rank}")
    return handle


def take_placement(Call call not None, handle, uint64_t number):
    """Where the rows of the handle's dispatch went; it has that `number` here."""
    cdef Placement at = handle.placement
    if at.handle != number:
        at = at.filled(number, at.rows)
    call.take_again(at.pos, at.library, "handle.pos")
    call.take_again(at.rank_prefix, at.library, "handle[0]")
    return at
