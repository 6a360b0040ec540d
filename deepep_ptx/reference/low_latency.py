# SPDX-License-Identifier: MIT
"""Low-latency mode: a token goes once to each expert that it names.

Each local expert has R * M rows, M being `num_max_dispatch_tokens_per_rank`, of which the first
`recv_count` are filled: by source rank, then token, then position in its top-k row.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..checks import as_bool, check_choice, check_int
from .checks import (
    check_entries,
    check_equal_shapes,
    check_experts,
    check_rows,
    check_topk_idx,
)
from .floats import FP8_GROUP, fma_f32, low_latency_cast_to_fp8, round_to_bf16, widen
from .logfmt import SMALL_BLOCK, logfmt_round_trip

REDUCTIONS = "exact", "rank"
LOW_HALF = 0xFFFFFFFF
GROUPS_PER_WORD = 4  # UE8M0 scales in an int32


@dataclass(frozen=True, eq=False)
class LowLatencyReceived:
    """What one rank holds after a low-latency dispatch.

    Rows past an expert's count are unspecified (zero here), as are their entries in `src_info`
    and `origin`.

    Attributes:
        rank: this rank.
        recv_x: bfloat16 [L, R * M, H]; with FP8 a pair (float8_e4m3fn [L, R * M, H], scales).
            Scales are float32 [L, R * M, H / 128], or with UE8M0 int32 [L, R * M, H / 512], the
            least significant byte being the first group's: the exponent field of the float32
            scale.  Either is the transpose of C-contiguous [L, ..., R * M].
        recv_count: int32 [L], rows of each local expert.
        src_info: int32 [L, R * M], the row's token number at its source.
        layout_range: int64 [L, R], first row << 32 | count of the rows of each source rank.
        origin: int64 [L, R * M], source rank << 32 | (token * K + k).
    """

    rank: int
    recv_x: np.ndarray | tuple[np.ndarray, np.ndarray]
    recv_count: np.ndarray
    src_info: np.ndarray
    layout_range: np.ndarray
    origin: np.ndarray

    def rows_from(self, local_expert: int, source: int) -> slice:
        """The rows of a local expert that came from rank `source`."""
        packed = int(self.layout_range[local_expert, source])
        first = packed >> 32
        return slice(first, first + (packed & LOW_HALF))


def low_latency_dispatch(xs, topk_idxs, num_max_dispatch_tokens_per_rank, num_experts,
                         use_fp8=True, round_scale=False, use_ue8m0=False):
    """Send every token once to each expert that it names.

    Args:
        xs: R arrays bfloat16 [T_r, H], T_r at most num_max_dispatch_tokens_per_rank, H a multiple
            of 128, with use_ue8m0 of 512.
        topk_idxs: R arrays [T_r, K], int32 or int64, as in `layout`.  An expert that a row names
            twice gets the token twice.
        num_max_dispatch_tokens_per_rank: M.  No expert gets more rows than that from one rank.
        num_experts: E.
        use_fp8: rows become FP8 E4M3 with a scale for every 128 elements.  In float32: amax =
            max(1e-4, largest |x|), NaN left out, scale = amax * float32(1/448), element =
            x * (448 / amax), to nearest, ties to even; NaN becomes 0x7f.  An infinity makes the
            scale infinite, itself 0x7f, and the other elements 0.
        round_scale: with use_fp8, scale is the least power of two that is not below amax *
            float32(1/448), and element = x / scale.
        use_ue8m0: scales as exponents, four to an int32; needs use_fp8 and round_scale.

    Returns:
        R `LowLatencyReceived`, in rank order.

    Raises:
        ValueError: an argument outside of what is said above.  TypeError: a number that is no
            integer, a flag that is neither true nor false.
    """
    num_experts, num_ranks, num_local_experts = check_experts(num_experts, len(xs))
    max_tokens = check_int(num_max_dispatch_tokens_per_rank, "num_max_dispatch_tokens_per_rank", 1)
    use_fp8, round_scale = as_bool(use_fp8, "use_fp8"), as_bool(round_scale, "round_scale")
    use_ue8m0 = as_bool(use_ue8m0, "use_ue8m0")
    if use_ue8m0 and not (use_fp8 and round_scale):
        raise ValueError("use_ue8m0: must be False without use_fp8 and round_scale, got True")
    hidden = _check_xs(xs, max_tokens, FP8_GROUP * (GROUPS_PER_WORD if use_ue8m0 else 1))
    check_rows("topk_idxs", topk_idxs, [len(x) for x in xs])
    topk_idxs = [check_topk_idx(idx, num_experts) for idx in topk_idxs]
    _check_rows_of_experts(topk_idxs, num_experts, max_tokens)

    rows, scales = xs, None
    if use_fp8:
        rows, scales = zip(*[low_latency_cast_to_fp8(x, round_scale) for x in xs], strict=True)
        if use_ue8m0:
            scales = [_ue8m0(s) for s in scales]

    num_rows = num_ranks * max_tokens
    received = []
    for rank in range(num_ranks):
        recv_x = np.zeros((num_local_experts, num_rows, hidden), rows[0].dtype)
        recv_scales = None
        if use_fp8:
            recv_scales = np.zeros((num_local_experts, scales[0].shape[1], num_rows),
                                   scales[0].dtype)
        recv_count = np.zeros(num_local_experts, np.int32)
        src_info = np.zeros((num_local_experts, num_rows), np.int32)
        layout_range = np.zeros((num_local_experts, num_ranks), np.int64)
        origin = np.zeros((num_local_experts, num_rows), np.int64)
        for local_expert in range(num_local_experts):
            expert, first = rank * num_local_experts + local_expert, 0
            for source, topk_idx in enumerate(topk_idxs):
                choices = np.flatnonzero(topk_idx == expert)  # token * K + k
                tokens = choices // topk_idx.shape[1]
                place = slice(first, first + len(choices))
                recv_x[local_expert, place] = rows[source][tokens]
                if use_fp8:
                    recv_scales[local_expert, :, place] = scales[source][tokens].T
                src_info[local_expert, place] = tokens
                origin[local_expert, place] = source << 32 | choices
                layout_range[local_expert, source] = first << 32 | len(choices)
                first = place.stop
            recv_count[local_expert] = first
        if use_fp8:
            recv_x = recv_x, recv_scales.transpose(0, 2, 1)
        received.append(LowLatencyReceived(rank, recv_x, recv_count, src_info, layout_range,
                                           origin))
    return received


def low_latency_combine(ys, received, topk_idxs, topk_weights, reduce="exact", use_logfmt=False):
    """Add up, at each token's home rank, what its experts made of it, each times its weight.

    In float32, each step fma(weight, value, sum) with one rounding, from +0.0, k ascending; one
    rounding to bfloat16 at the end, where every NaN becomes 0x7fff.  A token without an expert is
    zero.

    Args:
        ys: R arrays [L, R * M, H], rows as in `received`: bfloat16, or float32 as
            `logfmt_round_trip` makes.
        received: what `low_latency_dispatch` returned.
        topk_idxs: those of the dispatch, or with -1 in place of some entries, which leaves these
            rows out.
        topk_weights: R arrays float32 [T_r, K].
        reduce: "exact", one sum over all k; or "rank", such a sum over the k of each rank, and
            the sums of those ranks that have any of the token's experts added in ascending order.
        use_logfmt: rows of other ranks' experts are what `logfmt_round_trip` makes of them; those
            of the token's own rank, which do not travel, are as they were.  With "exact" only.

    Returns:
        R arrays bfloat16 [T_r, H].

    Raises:
        ValueError: shapes or dtypes that disagree, indices that the dispatch did not have.
    """
    reduce = check_choice(reduce, "reduce", REDUCTIONS)
    num_ranks = len(received)
    for name, arrays in ("ys", ys), ("topk_idxs", topk_idxs), ("topk_weights", topk_weights):
        check_entries(name, arrays, num_ranks)
    hidden = _check_ys(ys, received)
    num_experts = num_ranks * len(received[0].recv_count)
    topk_idxs = [check_topk_idx(idx, num_experts) for idx in topk_idxs]
    check_equal_shapes("topk_weights", topk_weights, topk_idxs)
    for weights in topk_weights:
        if weights.dtype != np.float32:
            raise ValueError(f"topk_weights: must be float32, got {weights.dtype}")

    sent = ys = [y.reshape(-1, hidden) for y in ys]
    if as_bool(use_logfmt, "use_logfmt"):
        if reduce != "exact":
            raise ValueError(f"use_logfmt: must be False with reduce={reduce!r}")
        sent = [_encoded(y, host) for y, host in zip(ys, received, strict=True)]
    results = []
    for home, (topk_idx, weights) in enumerate(zip(topk_idxs, topk_weights, strict=True)):
        ranks, rows = _places(received, home, topk_idx)
        acc = np.zeros((len(topk_idx), hidden), np.float32)
        seen = [*sent[:home], ys[home], *sent[home + 1:]]
        if reduce == "exact":
            _add_rows(acc, seen, range(num_ranks), ranks, rows, weights)
        else:
            begun = np.zeros(len(topk_idx), bool)
            for rank in range(num_ranks):
                partial = np.zeros_like(acc)
                _add_rows(partial, seen, [rank], ranks, rows, weights)
                contributes = (ranks == rank).any(axis=1)
                first, later = contributes & ~begun, contributes & begun
                acc[first] = partial[first]     # not 0 + partial, which has no -0
                with np.errstate(invalid="ignore", over="ignore"):
                    acc[later] += partial[later]
                begun |= contributes
        results.append(round_to_bf16(acc))
    return results


def _add_rows(acc, ys, from_ranks, ranks, rows, weights):
    """For k ascending, acc = fma(weight, row, acc) for tokens whose row lies on `from_ranks`."""
    for k in range(ranks.shape[1]):
        for rank in from_ranks:
            tokens = np.flatnonzero(ranks[:, k] == rank)
            values = ys[rank][rows[tokens, k]]
            values = widen(values) if values.dtype == ml_dtypes.bfloat16 else values
            acc[tokens] = fma_f32(weights[tokens, k, None], values, acc[tokens])


def _encoded(y, host):
    """A rank's rows as other ranks see them in LogFMT-10."""
    if y.dtype != ml_dtypes.bfloat16 or y.shape[1] % SMALL_BLOCK:
        raise ValueError(f"ys: must be bfloat16 [.., multiple of {SMALL_BLOCK}] with use_logfmt, "
                         f"got {y.dtype} {y.shape[1]}")
    filled = (np.arange(host.origin.shape[1]) < host.recv_count[:, None]).ravel()
    sent = np.zeros(y.shape, np.float32)
    sent[filled] = logfmt_round_trip(y[filled])[0]
    return sent


def _places(received, home, topk_idx):
    """Rank and row (of its local experts' under each other) of each choice of a rank's tokens, [T,
    K]; rank -1 for what is not to be added."""
    ranks = np.full(topk_idx.size, -1)
    rows, experts = ranks.copy(), ranks.copy()
    for host in received:
        num_local_experts, num_rows = host.origin.shape
        for local_expert in range(num_local_experts):
            place = host.rows_from(local_expert, home)
            choices = host.origin[local_expert, place] & LOW_HALF
            if len(choices) and choices[-1] >= topk_idx.size:       # they ascend
                raise ValueError(f"topk_idxs: must have the shapes of the dispatch, "
                                 f"got {topk_idx.shape} of rank {home}")
            ranks[choices] = host.rank
            rows[choices] = local_expert * num_rows + np.arange(place.start, place.stop)
            experts[choices] = host.rank * num_local_experts + local_expert
    wanted = topk_idx.ravel()
    wrong = np.flatnonzero((wanted >= 0) & (wanted != experts))
    if len(wrong):
        token, k = divmod(int(wrong[0]), topk_idx.shape[1])
        raise ValueError(f"topk_idxs: must be those of the dispatch or -1, got expert "
                         f"{topk_idx[token, k]} for token {token}, k {k} of rank {home}")
    ranks[wanted < 0] = -1
    return ranks.reshape(topk_idx.shape), rows.reshape(topk_idx.shape)


def _ue8m0(scales):
    """float32 powers of two [T, S] as their exponent fields, four to an int32 [T, S / 4]."""
    fields = (scales.view(np.uint32) >> 23).astype(np.uint8)
    return fields.view("<i4").astype(np.int32, copy=False)


def _check_xs(xs, max_tokens, multiple):
    """Columns of each x."""
    for x in xs:
        if x.dtype != ml_dtypes.bfloat16 or x.ndim != 2 or x.shape[1] % multiple or not x.shape[1]:
            raise ValueError(f"xs: must be bfloat16 [tokens, positive multiple of {multiple}], "
                             f"got {x.dtype} {x.shape}")
        if len(x) > max_tokens:
            raise ValueError(f"xs: must have at most num_max_dispatch_tokens_per_rank "
                             f"({max_tokens}) rows, got {len(x)}")
    columns = {x.shape[1] for x in xs}
    if len(columns) > 1:
        raise ValueError(f"xs: must have one number of columns on all ranks, "
                         f"got {sorted(columns)}")
    return columns.pop()


def _check_rows_of_experts(topk_idxs, num_experts, max_tokens):
    for rank, topk_idx in enumerate(topk_idxs):
        counts = np.bincount(topk_idx[topk_idx >= 0], minlength=num_experts)
        if counts.max() > max_tokens:
            raise ValueError(
                f"topk_idxs: must name an expert at most num_max_dispatch_tokens_per_rank "
                f"({max_tokens}) times on a rank, got {counts.max()} of expert {counts.argmax()} "
                f"on rank {rank}")


def _check_ys(ys, received):
    """Columns of each y."""
    hidden = ys[0].shape[-1]
    want = (*received[0].origin.shape, hidden)
    for y in ys:
        if y.dtype not in (ml_dtypes.bfloat16, np.float32) or y.shape != want:
            raise ValueError(f"ys: must be bfloat16 or float32 {want}, got {y.dtype} {y.shape}")
    return hidden
