# SPDX-License-Identifier: MIT
"""The input of a run: from a text, or from a file."""

from dataclasses import dataclass, replace

import numpy as np

from deepep_ptx import reference
from deepep_ptx.cli.demo import corpus, gating, jobfile
from deepep_ptx.cli.demo.experts import Experts
from deepep_ptx.cli.demo.settings import Settings
from deepep_ptx.low_latency import default_reduce

EXPERT_STREAM = 1  # experts have random numbers of their own: a saved job meets them again


@dataclass(frozen=True, eq=False)
class Job:
    """The input of every rank, as lists in rank order, and the experts.

    settings: with dtype and combine, or reduce, decided, and all that an input file says.
    xs: bfloat16 [T_r, H], or with dtype fp8 pairs (float8_e4m3fn [T_r, H], scales); in mode ll
    bfloat16, which the dispatch casts.
    vocabulary_size: of the text; None for a file.
    """

    settings: Settings
    xs: list
    topk_idxs: list
    topk_weights: list
    experts: Experts
    vocabulary_size: int | None

    @property
    def num_local_experts(self):
        """Experts of each rank."""
        return self.settings.num_experts // self.settings.num_ranks

    @property
    def num_worst_tokens(self):
        """Rows that hold what a rank could receive at most, or 0 without worst-case mode."""
        return sum(map(len, self.topk_idxs)) if self.settings.worst else 0

    @property
    def max_tokens(self):
        """num_max_dispatch_tokens_per_rank of mode ll: the most tokens of a rank, or where its
        rows name an expert more often than that, so many."""
        named = max(int(np.bincount(idx[idx >= 0], minlength=1).max()) for idx in self.topk_idxs)
        return max(1, named, *map(len, self.topk_idxs))

    def cast(self, dtype):
        """The job with rows of "bf16" or "fp8"; ValueError where there can be none."""
        settings = replace(self.settings, dtype=dtype)
        settings.check_rows()
        if settings.mode == "ll":
            reduce = settings.reduce or default_reduce(settings.num_ranks, settings.num_topk)
            settings = replace(settings, reduce=reduce)
        else:
            combine = settings.combine or ("pull" if dtype == "bf16" else "push")
            settings = replace(settings, combine=combine)
        return replace(self, settings=settings, xs=[_as_rows(x, settings) for x in self.xs])

    def save(self, path):
        """Write rows, choices and weights to a file that `input` takes."""
        jobfile.save(path, jobfile.JobArrays(self.xs, self.topk_idxs, self.topk_weights,
                                             self.settings.num_experts))


def _as_rows(x, settings):
    """Rows of either dtype as the calls of `settings` take them."""
    wants_pair = settings.dtype == "fp8" and settings.mode == "normal"
    if isinstance(x, tuple) == wants_pair:
        return x
    return reference.per_token_cast_to_fp8(x) if wants_pair else reference.per_token_cast_back(*x)


def prepare(settings):
    """Every rank's rows, choices and weights as `settings` want them: a `Job`."""
    job = load(settings)
    return job.cast(settings.dtype or job.settings.dtype)


def load(settings):
    """The job as its source has it: bf16 rows of a text, or the rows of a file."""
    if settings.input is not None:
        return _from_file(settings)
    rng = np.random.default_rng(settings.seed)
    count = settings.num_ranks * settings.num_tokens
    tokens = corpus.tokenise(corpus.read_text(settings.text), settings.unit, count)
    table = corpus.embedding_table(len(tokens.vocabulary), settings.hidden, rng)
    x = corpus.embed(tokens, table)
    topk_idx, topk_weights = gating.group_limited_topk(
        x, expert_vectors(table, settings.num_experts, rng), settings.num_topk,
        settings.num_groups, settings.num_topk_groups)
    shares = corpus.spans(settings.num_ranks, settings.num_tokens)
    return Job(
        settings=replace(settings, dtype="bf16"),
        xs=[x[share] for share in shares],
        topk_idxs=[topk_idx[share] for share in shares],
        topk_weights=[topk_weights[share] for share in shares],
        experts=_experts(settings),
        vocabulary_size=len(tokens.vocabulary),
    )


def expert_vectors(table, num_experts, rng):
    """A sample of the embeddings, without repetition while the vocabulary lasts: [E, hidden].

    Divided by sqrt(hidden), so that logits of unrelated tokens are standard normal.
    """
    order = rng.permutation(len(table))
    return table[np.resize(order, num_experts)] / np.float32(np.sqrt(table.shape[1]))


def _experts(settings):
    return Experts.seeded(settings.num_experts,
                          np.random.default_rng([settings.seed, EXPERT_STREAM]))


def _from_file(settings):
    path = settings.input
    arrays = jobfile.load(path)
    for name in "text", "unit", "num_tokens", "num_groups", "num_topk_groups":
        if settings.non_default(name):
            raise ValueError(f"{name}: must not be set with input, {path} has the job")
    is_fp8 = isinstance(arrays.xs[0], tuple)
    num_tokens = [len(idx) for idx in arrays.topk_idxs]
    facts = {
        "num_ranks": len(arrays.xs),
        "hidden": (arrays.xs[0][0] if is_fp8 else arrays.xs[0]).shape[1],
        "num_topk": arrays.topk_idxs[0].shape[1],
        "num_experts": arrays.num_experts or settings.num_experts,
    }
    for name, value in facts.items():
        if settings.non_default(name) and getattr(settings, name) != value:
            raise ValueError(f"{name}: must be {value}, as in {path}, or not be set; "
                             f"got {getattr(settings, name)}")
    settings = replace(settings, **facts, num_tokens=-(-sum(num_tokens) // len(num_tokens)),
                       num_groups=1, num_topk_groups=1, dtype="fp8" if is_fp8 else "bf16")
    settings.check_shape()
    highest = max(int(idx.max(initial=-1)) for idx in arrays.topk_idxs)
    if highest >= settings.num_experts:
        raise ValueError(f"num_experts: must be more than the highest expert of {path}, "
                         f"{highest}; got {settings.num_experts}")
    return Job(settings, arrays.xs, arrays.topk_idxs, arrays.topk_weights,
               _experts(settings), None)
