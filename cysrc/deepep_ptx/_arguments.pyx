# SPDX-License-Identifier: MIT
"""The arguments of a call, checked, as the core takes them.

The text of an error begins with the argument's name.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from gen.params cimport EP_MAX_LOCAL_EXPERTS, EP_MAX_TOPK, EP_ROW_ALIGN

from deepep_ptx._array cimport Array
from deepep_ptx._call cimport Call
from deepep_ptx._executor cimport Event

from deepep_ptx.arrays.dtypes import (
    BFLOAT16, BOOL, FLOAT32, INT32, INT64, ROW_CODES, SCALE_DTYPES, code_of,
)
from deepep_ptx.handle import EPHandle

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
    """

    def __init__(self, size_t stream, Event previous, uint32_t num_sms, bint wait, bint detached,
                 size_t graph, uint32_t stages=0, uint32_t stage_bytes=0):
        self.stream = stream
        self.previous = previous
        self.num_sms = num_sms
        self.wait = wait
        self.detached = detached
        self.graph = graph
        self.stages = stages
        self.stage_bytes = stage_bytes

    @property
    def captured(self):
        """Whether the call runs with a graph."""
        return self.graph != 0


# -- rows ---------------------------------------------------------------------------------------

@cython.final
cdef class Rows:
    """What a dispatch moves.

    array: [num_tokens, hidden].  code: of its dtype and its scales', equal on all ranks.
    scales: None, or [num_tokens, num_scales] of 4-byte words in any `strides` (bytes, two).
    """

    def __init__(self, Array array not None, uint32_t code, Array scales=None, tuple strides=None):
        self.array = array
        self.code = code
        self.scales = scales
        self.strides = strides

    @property
    def span(self):
        """(first, end): bytes of the scales' memory, from the first element's address."""
        if self.scales is None or self.scales.nbytes == 0:
            return 0, 0
        reach = [(length - 1) * stride
                 for length, stride in zip(self.scales.shape, self.strides, strict=True)]
        return (sum([min(0, step) for step in reach]),
                sum([max(0, step) for step in reach]) + self.scales.itemsize)


def first_array(x):
    """The array of `x` that says of which library a dispatch is: x, or the first of a pair."""
    if not isinstance(x, tuple):
        return x
    if len(x) != 2:
        raise ValueError(f"x: must be one array or a pair (x, scales), got a tuple of {len(x)}")
    return x[0]


def take_rows(Call call not None, x, num_tokens="num_tokens"):
    """`Rows` of dispatch's x: an array of any 1- or 2-byte type, or a pair with scales."""
    cdef Array array = take_matrix(call, first_array(x), None, num_tokens)
    cdef Array scales
    if not isinstance(x, tuple):
        return Rows(array, ROW_CODES[array.dtype])
    if array.itemsize != 1:
        raise TypeError(f"x[0]: dtype must be of 1 byte beside scales, got {array.dtype}")
    scales = call.take(x[1], "x[1]", SCALE_DTYPES, (array.shape[0], "num_scales"), 1, True)
    if scales.shape[1] == 0:
        raise ValueError("x[1]: num_scales must be at least 1, got 0")
    if scales.address % 4 or any([step % 4 for step in scales.strides]):
        raise ValueError("x[1]: must be 4-byte aligned, its strides too")
    return Rows(array, code_of(array.dtype, scales.dtype), scales, tuple(scales.strides))


def take_output(Call call not None, x, handle):
    """The expert output that combine adds up, as `Array`."""
    cdef Array array = take_matrix(call, x, COMBINED, handle.num_recv)
    check_hidden(array, handle)
    return array


def check_hidden(Array array not None, handle):
    """Rows for which the dispatch that made the handle has seen to room."""
    if array.shape[1] > handle.hidden:
        raise ValueError(f"x: hidden must be at most that of the dispatch, {handle.hidden}, "
                         f"got {array.shape[1]}")


cdef Array take_matrix(Call call, x, tuple dtypes, rows):
    cdef Array array = call.take(x, "x", dtypes, (rows, "hidden"), EP_ROW_ALIGN)
    cdef uint64_t hidden
    if array.dtype not in ROW_CODES:
        raise TypeError(f"x: dtype must be a known type of 1 or 2 bytes, got {array.dtype}")
    hidden = array.shape[1]
    if hidden == 0 or hidden * array.itemsize % EP_ROW_ALIGN:
        raise ValueError(f"x: hidden must be a multiple of {EP_ROW_ALIGN // array.itemsize} and at "
                         f"least that, got {hidden}")
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


def take_indices(Call call not None, topk_idx, num_tokens="num_tokens"):
    """The `Array` of topk_idx."""
    cdef Array array = call.take(topk_idx, "topk_idx", INDICES, (num_tokens, "num_topk"))
    check_topk(array.shape[1])
    return array


def take_weights(Call call not None, topk_weights, num_rows, num_topk="num_topk"):
    """The `Array` of topk_weights."""
    cdef Array array = call.take(topk_weights, "topk_weights", WEIGHTS, (num_rows, num_topk))
    check_topk(array.shape[1], "topk_weights")
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
    """Two `Array`s or None."""
    cdef tuple shape
    if bias is None:
        return None, None
    shape = (num_tokens, hidden)
    if not isinstance(bias, tuple):
        return call.take(bias, "bias", COMBINED, shape, EP_ROW_ALIGN), None
    if len(bias) != 2:
        raise ValueError(f"bias: must be None, one array or a pair, got {len(bias)}")
    return (call.take(bias[0], "bias[0]", COMBINED, shape, EP_ROW_ALIGN),
            call.take(bias[1], "bias[1]", COMBINED, shape, EP_ROW_ALIGN))


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
    """An `EPHandle` that rank `rank` of `num_ranks` can use on `executor`."""
    if not isinstance(handle, EPHandle):
        raise TypeError(f"handle: must be what dispatch returned, got {type(handle).__name__}")
    if handle.executor != executor.name:
        raise ValueError(f"handle: made on executor {handle.executor!r}, this buffer is on "
                         f"{executor.name!r}")
    if handle.placement.num_ranks != num_ranks:
        raise ValueError(f"handle: made by a group of {handle.placement.num_ranks} ranks, this one "
                         f"has {num_ranks}")
    if handle.rank != rank:
        raise ValueError(f"handle: made by rank {handle.rank}, this is rank {rank}")


def take_placement(Call call not None, handle):
    """Where the rows of the handle's dispatch went."""
    cdef Placement at = handle.placement
    call.take_again(at.pos, at.library, "handle.pos")
    call.take_again(at.rank_prefix, at.library, "handle[0]")
    return at
