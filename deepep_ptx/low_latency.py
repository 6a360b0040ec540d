# SPDX-License-Identifier: MIT
"""DeepEP's low-latency calls: dispatch and combine of few tokens, as decoding makes them."""

from ._arguments import check_experts
from ._limits import MAX_HIDDEN, MAX_RANKS, MAX_TOKENS, MAX_TOPK
from ._low_latency import GROUP, REDUCTIONS, Shape
from ._low_latency_calls import LowLatency
from .checks import as_bool, as_int, check_int
from .masks import MaskCalls, check_nobody_masked

WORD_TOKENS = 64                # see `_low_latency.Shape`; the same on all ranks
# Of builds of DeepEP whose combine begins while its x is being computed: their defaults.
BLOCK_M, NO_SIGNAL = 64, 0
HINT_TOPK = 8                   # choices of a token that the size hint is for


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
    return _shape(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts, num_topk,
                  reduce).nbytes


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
    return Shape(num_ranks, max_tokens, hidden, num_experts, num_topk, REDUCTIONS[reduce],
                 WORD_TOKENS)


class Agreement:
    """What all ranks of a buffer have agreed on for its low-latency calls.

    symmetric: its connected `Symmetric`.  reduce: None until the first call says how many choices
    there are, if the buffer was not told.
    """

    def __init__(self, symmetric, num_ranks, reduce):
        self._symmetric = symmetric
        self._core = symmetric.core
        self._num_ranks = num_ranks
        self._shapes = {}
        self.reduce = reduce

    def start(self, nbytes):
        """Memory to start with; collective.  All ranks have low-latency mode, or none."""
        reduce = 0 if self.reduce is None else REDUCTIONS[self.reduce]
        self._symmetric.ensure_low_latency(Shape(self._num_ranks, 0, 0, 0, 0, reduce, 0), nbytes)

    def of(self, call, max_tokens, hidden, num_experts, num_topk):
        """The `Shape` of such calls, for which there is memory; collective where it is new."""
        key = max_tokens, hidden, num_experts, num_topk
        shape = self._shapes.get(key)
        if shape is not None:
            return shape
        shape = _shape(max_tokens, hidden, self._num_ranks, num_experts, num_topk, self.reduce)
        room = self._core.ll_dispatch_smem
        if shape.smem > room:
            raise ValueError(f"x: hidden {hidden} and {num_experts} experts take {shape.smem} "
                             f"bytes of shared memory in a dispatch, a CTA has {room}")
        if self._core.look(call.stream):
            raise ValueError("num_max_dispatch_tokens_per_rank: the first call with these numbers "
                             "of tokens, values, experts and choices is for all ranks together, "
                             "and cannot be captured; make one before the capture")
        check_nobody_masked(self._core, "num_max_dispatch_tokens_per_rank")
        self._symmetric.ensure_low_latency(shape, shape.nbytes, call.stream)
        if self.reduce is None:
            self.reduce = default_reduce(self._num_ranks, num_topk)
        self._shapes[key] = shape
        return shape


class LowLatencyCalls(MaskCalls):
    """The low-latency half of a `Buffer`, which brings what it shares with the other half."""

    def _start_low_latency(self, reduce, nbytes):
        """Collective with low-latency mode, in which all ranks have it."""
        self._hooks = []                    # the one that is due
        self._agreement = Agreement(self._symmetric, self.group_size, reduce)
        self._low_latency = LowLatency(self._launcher, self._in_flight, self._room,
                                       self._agreement, self._hooks)
        self._check_no_hook = self._low_latency.check_no_hook
        if self.low_latency_mode:
            self._agreement.start(nbytes)

    @property
    def reduce(self):
        """How `low_latency_combine` adds up: "exact" or "rank"; None before the first low-latency
        call of a buffer that was not told."""
        return self._agreement.reduce

    def _reset_low_latency(self):
        self._hooks.clear()
        self._low_latency.reset()

    def _live_low_latency(self):
        self._live_core()
        if not self.low_latency_mode:
            raise ValueError("low_latency_mode: must be True for low-latency calls")
        return self._low_latency

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
        return self._live_low_latency().combine_buffer(handle)

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
        calls = self._live_low_latency()
        if not (x_global_scale is None and use_nvfp4 is False):
            _check_absent(x_global_scale=x_global_scale)
            _check_off(use_nvfp4=use_nvfp4)
        return calls.dispatch(
            x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts,
            cumulative_local_expert_recv_stats, dispatch_wait_recv_cost_stats, use_fp8, round_scale,
            use_ue8m0, async_finish, return_recv_hook, num_sms, stream)

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
            use_logfmt: rows of other ranks' experts cross in LogFMT-10, 10 bits for a value and 32
                for 128, in place of 16 bits a value; hidden a multiple of 512, and `reduce` is
                "exact".  This is DeepEP V1's format: of each 128 values, code 0 is 0 and code c
                from 1 to 511 is 2^(log_min + (c - 1) * step), log_max = log2(largest |x|), log_min
                = max(log2(least |x|), log_max - 32), step = (log_max - log_min) / 510.  A value
                is off by at most |x| * ((2^step - 1) / (2^step + 1) + 2^-13) + 2^-126, which is
                2.2 % at most, one below 2^log_min by 2^log_min
                (`reference.logfmt_error_bound`).  Blocks of 1024 values (512 where hidden is no
                multiple of 1024) cross as they are if any |x| is 1 or more or not a number, or
                128 values have one size, all zero for example.  The same on all ranks.  Not in a
                buffer with enable_shrink, in this release.
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
        calls = self._live_low_latency()
        # Nearly always: what is looked at one by one takes a microsecond.
        if not (use_logfmt is zero_copy is overlap is False
                and packed_recv_count is comp_signal is src_signals is None
                and block_m is BLOCK_M and threshold is src_signal_expect_value is NO_SIGNAL):
            use_logfmt = as_bool(use_logfmt, "use_logfmt")
            zero_copy = as_bool(zero_copy, "zero_copy")
            if zero_copy and use_logfmt:
                raise ValueError("zero_copy: must be False with use_logfmt")
            if use_logfmt and self.enable_shrink:
                raise NotImplementedError("use_logfmt: must be False in a buffer with "
                                          "enable_shrink=True in this release")
            _check_off(overlap=overlap)
            _check_absent(packed_recv_count=packed_recv_count, comp_signal=comp_signal,
                          src_signals=src_signals)
            _check_default(BLOCK_M, block_m=block_m)
            _check_default(NO_SIGNAL, threshold=threshold,
                           src_signal_expect_value=src_signal_expect_value)
        return calls.combine(x, topk_idx, topk_weights, handle, use_logfmt, zero_copy, async_finish,
                             return_recv_hook, out, combine_wait_recv_cost_stats, num_sms, stream)


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
