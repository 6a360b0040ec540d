# SPDX-License-Identifier: MIT
"""Dispatch and combine in plain NumPy: what the kernels must compute, bit for bit.

Every function sees the inputs of *all* ranks at once, as lists in rank order, and nothing moves:
what a kernel does by stores into a peer's memory is an index expression here.  Symbols: R ranks,
T tokens of a rank, H hidden size, K top-k, E experts, L = E // R local experts; expert e lives on
rank e // L.

    layouts  = [layout(idx, E, R) for idx in topk_idxs]
    received = dispatch(xs, topk_idxs, topk_weights, E)
    ys       = [expert(r.recv_x) for r in received]
    results  = combine(ys, received)

In `dispatch`, x may be a pair (x, scales), as FP8 rows are; what makes such rows of bfloat16 ones
and back is `per_token_cast_to_fp8` and `per_token_cast_back`.

The module needs NumPy, ml_dtypes and the package's checks of integers only.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deepep_ptx.checks import check_int

MAX_TOPK = 32
BF16_BYTES = 2
BF16_NAN = 0x7FFF  # the one NaN that cvt.rn.bf16x2.f32 makes, whatever NaN goes in
FP8 = ml_dtypes.float8_e4m3fn
FP8_MAX = 448
FP8_NAN = 0x7F  # likewise, of cvt.rn.satfinite.e4m3x2.f32
FP8_GROUP = 128  # consecutive elements of a row that share a scale
FP8_MIN_AMAX = np.float32(1e-4)


@dataclass(frozen=True, eq=False)
class Received:
    """What one rank holds after dispatch.

    With `num_worst_tokens` the first dimension of the `recv_*` arrays is that number; rows from
    `num_recv` on have index -1 and are otherwise unspecified (zero here).

    Attributes:
        rank: this rank.
        recv_x: [n, H], dtype of x; rows by source rank, then by token.  A pair of C-contiguous
            arrays (x [n, H], scales [n, S]) where pairs were sent.
        recv_topk_idx: [n, K], dtype of topk_idx: local expert, or -1 for another rank's.
        recv_topk_weights: float32 [n, K], 0 where recv_topk_idx is -1.
        recv_src_idx: int32 [n], the row's token number at its source.
        rank_prefix_matrix: int32 [R, R], [s, d] = rows that ranks 0..s send to rank d.
        is_token_in_rank: bool [T, R] of this rank's own tokens.
        num_recv_tokens_per_expert_list: L ints; empty with `num_worst_tokens`.
    """

    rank: int
    recv_x: np.ndarray | tuple[np.ndarray, np.ndarray]
    recv_topk_idx: np.ndarray | None
    recv_topk_weights: np.ndarray | None
    recv_src_idx: np.ndarray
    rank_prefix_matrix: np.ndarray
    is_token_in_rank: np.ndarray
    num_recv_tokens_per_expert_list: list[int]

    @property
    def num_recv(self) -> int:
        """Rows received."""
        return int(self.rank_prefix_matrix[-1, self.rank])

    def rows_from(self, source: int) -> slice:
        """The rows that came from rank `source`."""
        first = int(self.rank_prefix_matrix[source - 1, self.rank]) if source else 0
        return slice(first, int(self.rank_prefix_matrix[source, self.rank]))


def layout(topk_idx, num_experts, num_ranks):
    """Count where one rank's tokens go.

    Args:
        topk_idx: int32 or int64 [T, K], expert of each choice, -1 = unused.
        num_experts: E, a multiple of num_ranks.
        num_ranks: R.

    Returns:
        num_tokens_per_rank int32 [R] (a token counts once per rank), num_tokens_per_expert
        int32 [E] (an expert named twice in a row counts twice), is_token_in_rank bool [T, R].

    Raises:
        ValueError: an argument outside of what is said above.  TypeError: a number that is no
            integer.
    """
    num_experts, num_ranks, num_local_experts = _check_experts(num_experts, num_ranks)
    topk_idx = _check_topk_idx(topk_idx, num_experts)
    token, choice = np.nonzero(topk_idx >= 0)
    expert = topk_idx[token, choice]
    is_token_in_rank = np.zeros((len(topk_idx), num_ranks), dtype=bool)
    is_token_in_rank[token, expert // num_local_experts] = True
    num_tokens_per_rank = is_token_in_rank.sum(axis=0, dtype=np.int32)
    num_tokens_per_expert = np.bincount(expert, minlength=num_experts).astype(np.int32)
    return num_tokens_per_rank, num_tokens_per_expert, is_token_in_rank


def dispatch(xs, topk_idxs, topk_weights, num_experts, num_worst_tokens=0):
    """Send every token once to every rank that has one of its experts.

    Args:
        xs: R arrays [T_r, H] of one dtype; or R pairs (x [T_r, H], scales [T_r, S]) of one dtype
            each, that of the scales of 1, 2 or 4 bytes.  Rows are moved bit for bit, never computed
            with; any strides.
        topk_idxs: R arrays [T_r, K], int32 or int64, as in `layout`.
        topk_weights: R arrays float32 [T_r, K]; None = the ranks send rows without top-k
            data, and `recv_topk_idx` and `recv_topk_weights` are None.
        num_experts: E.
        num_worst_tokens: rows of each result; 0 = as many as are received.

    Returns:
        R `Received`, in rank order.

    Raises:
        ValueError: shapes or dtypes that disagree, or num_worst_tokens too small.
    """
    num_experts, num_ranks, num_local_experts = _check_experts(num_experts, len(xs))
    num_worst_tokens = check_int(num_worst_tokens, "num_worst_tokens", 0)
    num_tokens = _check_xs(xs)
    _check_rows("topk_idxs", topk_idxs, num_tokens)
    layouts = [layout(idx, num_experts, num_ranks) for idx in topk_idxs]
    if topk_weights is not None:
        _check_rows("topk_weights", topk_weights, num_tokens)
        _check_equal_shapes("topk_weights", topk_weights, topk_idxs)

    sent = np.stack([counts for counts, _, _ in layouts])  # [s, d] = rows of s for d
    rank_prefix_matrix = np.cumsum(sent, axis=0, dtype=np.int32)
    per_expert = sum(counts for _, counts, _ in layouts)
    most = int(rank_prefix_matrix[-1].max())
    if num_worst_tokens and num_worst_tokens < most:
        raise ValueError(f"num_worst_tokens: must be 0 or at least {most}, got {num_worst_tokens}")

    received = []
    for rank in range(num_ranks):
        tokens = [np.nonzero(in_rank[:, rank])[0] for _, _, in_rank in layouts]
        mine = slice(rank * num_local_experts, (rank + 1) * num_local_experts)
        recv_topk_idx = recv_topk_weights = None
        if topk_weights is not None:
            idx = _gather(topk_idxs, tokens)
            is_mine = (idx >= mine.start) & (idx < mine.stop)
            weights = _gather(topk_weights, tokens)
            recv_topk_idx = np.where(is_mine, idx - mine.start, -1).astype(idx.dtype)
            recv_topk_weights = np.where(is_mine, weights, np.float32(0))
        received.append(Received(
            rank=rank,
            recv_x=_move(xs, tokens, num_worst_tokens),
            recv_topk_idx=_pad(recv_topk_idx, num_worst_tokens, -1),
            recv_topk_weights=_pad(recv_topk_weights, num_worst_tokens, 0),
            recv_src_idx=_pad(np.concatenate(tokens).astype(np.int32), num_worst_tokens, 0),
            rank_prefix_matrix=rank_prefix_matrix,
            is_token_in_rank=layouts[rank][2],
            num_recv_tokens_per_expert_list=[] if num_worst_tokens else per_expert[mine].tolist(),
        ))
    return received


def cached_dispatch(xs, received):
    """Send other rows to where an earlier dispatch sent its tokens' rows.

    Args:
        xs: as in `dispatch`, with as many rows as there; dtype and hidden size may be others.
        received: what `dispatch` returned.

    Returns:
        R recv_x, each as `Received.recv_x`, with the rows of `received`, padding included.

    Raises:
        ValueError: shapes or dtypes that disagree.
    """
    num_tokens, want = _check_xs(xs), [len(home.is_token_in_rank) for home in received]
    if num_tokens != want:
        raise ValueError(f"xs: must have the rows of the dispatch per rank ({want}), "
                         f"got {num_tokens}")
    return [_move(xs, [host.recv_src_idx[host.rows_from(source)] for source in range(len(xs))],
                  len(host.recv_src_idx)) for host in received]


def combine(ys, received, topk_weights=None, bias=None):
    """Add up, at each token's home rank, the rows that its ranks made of it.

    acc (float32) = bias0 + bias1, a missing one being +0.0; then acc += row for each contributing
    rank in ascending order; one rounding to bfloat16.  Weights likewise, from 0, in float32.

    Args:
        ys: R arrays bfloat16 [n_r, H], rows as in `received`.
        received: what `dispatch` returned.
        topk_weights: R arrays float32 [n_r, K], or None.
        bias: None, or per rank: None, an array bfloat16 [T_r, H], or a pair of them.

    Returns:
        Per rank: (combined_x bfloat16 [T_r, H], combined_topk_weights float32 [T_r, K] or None).

    Raises:
        ValueError: shapes or dtypes that disagree.
    """
    for name, arrays in ("ys", ys), ("topk_weights", topk_weights), ("bias", bias):
        if arrays is not None and len(arrays) != len(received):
            raise ValueError(f"{name}: must have one entry per rank ({len(received)}), "
                             f"got {len(arrays)}")
    for y in ys:
        if y.dtype != ml_dtypes.bfloat16:
            raise ValueError(f"ys: must be bfloat16 arrays, got {y.dtype}")
    results = []
    for home in received:
        num_tokens, hidden = len(home.is_token_in_rank), ys[home.rank].shape[1]
        acc = _bias_sum(bias[home.rank] if bias is not None else None, (num_tokens, hidden))
        weights = None
        if topk_weights is not None:
            num_topk = topk_weights[home.rank].shape[1]
            weights = np.zeros((num_tokens, num_topk), dtype=np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # Inf and NaN are values like others
            for host in received:
                rows = host.rows_from(home.rank)
                tokens = host.recv_src_idx[rows]  # no token twice, so += adds each once
                acc[tokens] += widen(ys[host.rank][rows])
                if weights is not None:
                    weights[tokens] += topk_weights[host.rank][rows]
        results.append((round_to_bf16(acc), weights))
    return results


def widen(x):
    """bfloat16 to float32, exactly: the 16 bits become the upper half."""
    return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(x):
    """float32 to bfloat16 as cvt.rn does: to nearest, ties to even, every NaN to 0x7fff.

    ml_dtypes keeps a NaN's sign and payload, hence by hand.
    """
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    upper = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    upper[np.isnan(x)] = BF16_NAN
    return upper.view(ml_dtypes.bfloat16)


def per_token_cast_to_fp8(x, round_scale=False):
    """bfloat16 rows as FP8 E4M3 with a scale for every 128 elements; DeepEP's cast.

    In float32, for each group of 128: amax = max(1e-4, largest |x|), scale = amax / 448, element =
    x * (448 / amax), to nearest, ties to even.  round_scale: scale is the least power of two that
    is not below amax / 448, and element = x / scale.  NaN becomes 0x7f and does not count for
    amax.

    Args:
        x: bfloat16 [T, H], H a multiple of 128.
        round_scale: scales that are powers of two.

    Returns:
        float8_e4m3fn [T, H], float32 scales [T, H / 128].

    Raises:
        ValueError: another dtype or shape.
    """
    if x.dtype != ml_dtypes.bfloat16 or x.ndim != 2 or x.shape[1] % FP8_GROUP:
        raise ValueError(f"x: must be bfloat16 [tokens, multiple of {FP8_GROUP}], "
                         f"got {x.dtype} {x.shape}")
    groups = widen(x).reshape(len(x), x.shape[1] // FP8_GROUP, FP8_GROUP)
    amax = np.fmax(np.fmax.reduce(np.abs(groups), axis=2), FP8_MIN_AMAX)
    scales = amax / np.float32(FP8_MAX)
    factors = np.float32(FP8_MAX) / amax
    if round_scale:
        # Any bit of the mantissa carries into the exponent.
        scales = ((scales.view(np.uint32) + 0x7FFFFF) & 0x7F800000).view(np.float32)
        factors = 1 / scales
    with np.errstate(invalid="ignore"):  # Inf * 0
        scaled = groups * factors[:, :, None]
    elements = scaled.astype(FP8)        # nothing is so far above 448 that it would not round to it
    elements.view(np.uint8)[np.isnan(scaled)] = FP8_NAN
    return elements.reshape(x.shape), scales


def per_token_cast_back(x, scales, dtype="bfloat16"):
    """What `per_token_cast_to_fp8` made, as bfloat16 or float32: element * scale in float32.

    Args:
        x: float8_e4m3fn [T, H].
        scales: float32 [T, H / 128].
        dtype: of the result; float32 is the product itself, bfloat16 rounds it.

    Raises:
        ValueError: another dtype or shape.
    """
    if x.dtype != FP8 or x.ndim != 2 or x.shape[1] % FP8_GROUP:
        raise ValueError(f"x: must be float8_e4m3fn [tokens, multiple of {FP8_GROUP}], "
                         f"got {x.dtype} {x.shape}")
    want = (len(x), x.shape[1] // FP8_GROUP)
    if scales.dtype != np.float32 or scales.shape != want:
        raise ValueError(f"scales: must be float32 {want}, got {scales.dtype} {scales.shape}")
    groups = x.astype(np.float32).reshape(*want, FP8_GROUP)
    with np.errstate(invalid="ignore", over="ignore"):  # Inf and NaN are values like others
        product = (groups * scales[:, :, None]).reshape(x.shape)
    dtype = np.dtype(dtype)
    if dtype == np.float32:
        return product
    if dtype == ml_dtypes.bfloat16:
        return round_to_bf16(product)
    raise ValueError(f"dtype: must be bfloat16 or float32, got {dtype}")


def _bias_sum(bias, shape):
    parts = bias if isinstance(bias, tuple) else (bias,)
    if len(parts) > 2:
        raise ValueError(f"bias: must be None, an array or a pair, got {len(parts)} arrays")
    terms = [np.zeros(shape, dtype=np.float32)] * 2
    for i, part in enumerate(parts):
        if part is None:
            continue
        if part.shape != shape or part.dtype != ml_dtypes.bfloat16:
            raise ValueError(f"bias: must be bfloat16 {shape}, got {part.dtype} {part.shape}")
        terms[i] = widen(part)
    with np.errstate(invalid="ignore", over="ignore"):
        return terms[0] + terms[1]


def _move(xs, tokens, num_rows):
    """Rows `tokens` of every rank's x, or (x, scales), under each other; zeros up to `num_rows`."""
    if isinstance(xs[0], tuple):
        return tuple(_pad(_gather(part, tokens), num_rows, 0) for part in zip(*xs, strict=True))
    return _pad(_gather(xs, tokens), num_rows, 0)


def _gather(arrays, tokens):
    pieces = [array[index] for array, index in zip(arrays, tokens, strict=True)]
    return np.ascontiguousarray(np.concatenate(pieces))  # NumPy promises no order of its own


def _pad(array, num_rows, value):
    if array is None or not num_rows:
        return array
    padded = np.full((num_rows, *array.shape[1:]), value, dtype=array.dtype)
    padded[:len(array)] = array
    return padded


def _check_experts(num_experts, num_ranks):
    """Both as ints, and experts of a rank."""
    num_ranks = check_int(num_ranks, "num_ranks", 1)
    num_experts = check_int(num_experts, "num_experts", 1)
    if num_experts % num_ranks:
        raise ValueError(f"num_experts: must be a positive multiple of the number of ranks "
                         f"({num_ranks}), got {num_experts}")
    return num_experts, num_ranks, num_experts // num_ranks


def _check_topk_idx(topk_idx, num_experts):
    topk_idx = np.asarray(topk_idx)
    if topk_idx.dtype not in (np.int32, np.int64):
        raise ValueError(f"topk_idx: must be int32 or int64, got {topk_idx.dtype}")
    if topk_idx.ndim != 2 or not 1 <= topk_idx.shape[1] <= MAX_TOPK:
        raise ValueError(f"topk_idx: must be [tokens, 1..{MAX_TOPK}], got {topk_idx.shape}")
    if topk_idx.size and (topk_idx.min() < -1 or topk_idx.max() >= num_experts):
        raise ValueError(f"topk_idx: must be in [-1, {num_experts}), got "
                         f"{topk_idx.min()} to {topk_idx.max()}")
    return topk_idx


def _check_xs(xs):
    """Rows of each x; all are alike but for that."""
    is_pair = {isinstance(x, tuple) for x in xs}
    if is_pair == {False}:
        _check_alike(xs, lambda _: True, "of one dtype")
        return [len(x) for x in xs]
    if is_pair != {True} or {len(x) for x in xs} != {2}:
        raise ValueError("xs: must be arrays, or pairs of arrays (x, scales), on all ranks alike")
    rows, scales = zip(*xs, strict=True)
    _check_alike(rows, lambda _: True, "of one dtype")
    _check_alike(scales, lambda s: s.dtype.itemsize in (1, 2, 4),
                 "of 1-, 2- or 4-byte elements, being scales")
    num_tokens = [len(x) for x in rows]
    if [len(s) for s in scales] != num_tokens:
        raise ValueError(f"xs: must have scales for each row ({num_tokens}), "
                         f"got {[len(s) for s in scales]}")
    return num_tokens


def _check_alike(arrays, accepts, wanted):
    """All 2-D, of one accepted dtype and one number of columns."""
    for array in arrays:
        if array.ndim != 2 or not accepts(array):
            raise ValueError(f"xs: must be [tokens, columns] {wanted}, "
                             f"got {array.dtype} {array.shape}")
    kinds = {(str(array.dtype), array.shape[1]) for array in arrays}
    if len(kinds) > 1:
        raise ValueError(f"xs: must have one dtype and one number of columns on all ranks, "
                         f"got {sorted(kinds)}")


def _check_rows(name, arrays, want):
    rows = [len(a) for a in arrays]
    if rows != want:
        raise ValueError(f"{name}: must have the rows of xs per rank ({want}), got {rows}")


def _check_equal_shapes(name, arrays, like):
    shapes, want = [a.shape for a in arrays], [a.shape for a in like]
    if shapes != want:
        raise ValueError(f"{name}: must have the shapes of topk_idxs ({want}), got {shapes}")
