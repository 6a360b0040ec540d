# SPDX-License-Identifier: MIT
"""Normal mode: every token goes once to every rank that has one of its experts."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..checks import check_int
from .checks import (
    check_entries,
    check_equal_shapes,
    check_experts,
    check_rows,
    check_topk_idx,
)
from .floats import round_to_bf16, widen


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
    num_experts, num_ranks, num_local_experts = check_experts(num_experts, num_ranks)
    topk_idx = check_topk_idx(topk_idx, num_experts)
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
    num_experts, num_ranks, num_local_experts = check_experts(num_experts, len(xs))
    num_worst_tokens = check_int(num_worst_tokens, "num_worst_tokens", 0)
    num_tokens = _check_xs(xs)
    check_rows("topk_idxs", topk_idxs, num_tokens)
    layouts = [layout(idx, num_experts, num_ranks) for idx in topk_idxs]
    if topk_weights is not None:
        check_rows("topk_weights", topk_weights, num_tokens)
        check_equal_shapes("topk_weights", topk_weights, topk_idxs)

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
        if arrays is not None:
            check_entries(name, arrays, len(received))
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
