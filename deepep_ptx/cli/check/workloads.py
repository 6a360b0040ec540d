# SPDX-License-Identifier: MIT
"""Small runs of real `Buffer` calls on the CPU executor, which together come to everything that
synchronises in the kernels: what the race checker, and mutants of the kernels, are tried with.

A workload is tens of milliseconds without the checker.  Its inputs are those of the seed, every
result is compared with `deepep_ptx.reference` bit for bit, and most have several rounds on one
buffer, so that slots, records of both parities and landing are used again.
"""

from dataclasses import dataclass, field

from deepep_ptx import select
from deepep_ptx.cli.check import failing, failing_low_latency
from deepep_ptx.cli.check.low_latency import LowLatencyCalls
from deepep_ptx.cli.check.rounds import Calls, all_wrong, narrow
from deepep_ptx.errors import RaceError, RankError
from deepep_ptx.runtime import ARCHS


@dataclass(frozen=True)
class Workload:
    """A run.  says: what it is about.  ranks: unless other numbers are asked for.

    only: a data path without which it comes to nothing that other workloads do not.
    uses: names of kernels, or of uses of one, as `select.choose` has them, whose variants it runs.
    """

    name: str
    says: str
    uses: tuple[str, ...]
    calls: Calls | LowLatencyCalls
    ranks: int = 2
    only: str | None = None

    @property
    def kernels(self):
        """Names of the kernels that it runs."""
        uses = select.load_table()["uses"]
        return tuple(dict.fromkeys(uses.get(use, use) for use in self.uses))

    def variants(self, policy, arch):
        """Use of a kernel -> the variant that runs, a row of the shipped table.

        Raises:
            ValueError: as `select.choose` does.
        """
        chosen = select.choose(policy, arch)
        return {use: chosen[use] for use in self.uses}

    def is_for(self, variants):
        """Whether a run with these variants is worth its time."""
        return self.only is None or any(row["path"] == self.only for row in variants.values())

    def run(self, policy, *, arch=ARCHS[-1], ranks=None, scheduler="rr", seed=0, memory="sc",
            check="races"):
        """Run it once: an `Outcome`.

        policy: an alias, a policy, a data path or a variant's symbol.  ranks: None = its own.
        scheduler, seed, memory, check: as of `run_ranks`; the seed is that of the inputs too.
        """
        ranks = self.ranks if ranks is None else ranks
        rounds = [self.calls.inputs(ranks, number, seed) for number in range(self.calls.rounds)]
        try:
            results = self.calls.run(ranks, rounds, policy, executor="emu", arch=arch,
                                     scheduler=scheduler, seed=seed, memory=memory, check=check)
            races = ()
        except RaceError as error:
            results, races = error.results, error.races
        except RankError as error:
            return Outcome(failure=error)
        return Outcome(races=tuple(races), ran=results[0][1],
                       wrong=tuple(all_wrong(rounds, [made for made, _ in results])))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found.

    races: `Race`s.  wrong: `Wrong` results, at most one of each rank and round.  failure: the
    `RankError` of a run that did not come to its end, with races as its notes.
    ran: what was executed, as `World.ran` gives it; None after a failure.
    """

    races: tuple = ()
    wrong: tuple = ()
    failure: RankError | None = None
    ran: dict | None = field(default=None, repr=False)

    @property
    def is_clean(self):
        """Whether nothing was found."""
        return not (self.races or self.wrong or self.failure)


# -- all of them ------------------------------------------------------------------------------

# What a handle keeps is always copied.
_PULL = ("layout", "dispatch", "copy", "combine")
_PUSH = ("layout", "dispatch", "copy", "combine_push")
_MIXED = (*_PULL, "combine_push")
_LOW_LATENCY = ("ll_dispatch", "ll_combine")
_LOGFMT = ("ll_dispatch", "ll_logfmt_combine")
_MASKS = ("ll_dispatch_shrink", "ll_combine_shrink", "ll_mask")

WORKLOADS = {workload.name: workload for workload in (
    Workload("layout", "several CTAs, more experts than a CTA counts in shared memory",
             ("layout",), Calls(tokens=(400, 30), topk=8, experts=1024, only_layout=True), ranks=5),
    Workload("pull", "three ranks, one without tokens; rows of several vectors, a bias",
             _PULL, Calls(tokens=(17, 0, 9), hidden=1160, biases=1), ranks=3),
    Workload("push", "the same, pushed, two biases",
             _PUSH, Calls(tokens=(14, 0, 9), hidden=1160, combine="push", biases=2), ranks=3),
    Workload("mixed", "rows that are pulled beside rows that are pushed; no weights",
             _MIXED, Calls(tokens=(11, 17), hidden=520, combine="mixed", weights=False), ranks=3),
    Workload("many", "several tokens for each warp",
             _PULL, Calls(tokens=(70, 61), hidden=264, sms=1, again=True)),
    Workload("many-push", "several pushed tokens for each warp",
             _PUSH, Calls(tokens=(70, 61), hidden=264, sms=1, combine="push", early=True)),
    Workload("cached", "rows sent again with the handle, three rounds",
             _PULL, Calls(tokens=(9, 17), again=True, rounds=3)),
    Workload("fp8", "rows with scales, sent twice; combine of arrays in the arena, one by one",
             _PULL, Calls(tokens=(9, 14), hidden=640, dtype="fp8", again=True, twice=True)),
    Workload("worst", "results of the size of the worst case",
             _PUSH, Calls(tokens=(12, 7), worst=True, combine="push")),
    Workload("queued", "three rounds that no host waits for",
             _PULL, Calls(tokens=(9, 13), again=True, queued=True, rounds=3)),
    Workload("copies", "results that are copied out",
             _PUSH, Calls(tokens=(60, 41), hidden=520, copies=True)),
    Workload("rings", "bulk copies through several stages, rows of several chunks",
             _MIXED, Calls(tokens=(9, 13), hidden=2048, sms=1, again=True, combine="mixed",
                           stages=3, stage_bytes=512, before=narrow), only="bulk"),
    Workload("two-paths", "one rank moves rows by bulk copies, the other one by loads and stores",
             _PUSH, Calls(tokens=(17, 9), hidden=520, combine="push", others="ld_na"), only="bulk"),
    Workload("refused", "a call that is refused between others",
             _PULL, Calls(tokens=(9, 17), worst=True, rounds=1, before=failing.refused)),
    Workload("mistaken", "experts, counts and calls that only the device finds wrong",
             _PULL, Calls(tokens=(9, 17), topk=9, experts=12, idx_dtype="int32",
                          before=failing.mistaken)),
    Workload("impatient", "waits that give up before a bulk load has come",
             _MIXED, Calls(tokens=(24, 9), hidden=1160, sms=1, combine="mixed",
                           before=failing.impatient), only="bulk"),
    Workload("slow-rows", "a pushed row that does not come while others are pulled",
             _MIXED, Calls(tokens=(9, 7), combine="mixed", stage_bytes=256,
                           before=failing.slow_rows), ranks=3, only="bulk"),
    Workload("late", "a rank that does not come to dispatch, then a reset",
             _PULL, Calls(tokens=(9, 7), before=failing.late_dispatch), ranks=3),
    Workload("late-combine", "a rank that comes late to combine, then a reset",
             _MIXED, Calls(tokens=(9, 7), combine="mixed", before=failing.late_combine), ranks=3),
    Workload("left", "a rank leaves while the others are in a dispatch",
             (*_PULL, "abort"), Calls(tokens=(9, 7), before=failing.left)),
    Workload("ll-words", "rows that cross as words, one rank without tokens",
             _LOW_LATENCY, LowLatencyCalls(tokens=(13, 0, 7), topk=6, stats=True, rounds=3),
             ranks=3),
    Workload("ll-flags", "rows of more tokens, in parts behind flags, beside rows in words",
             _LOW_LATENCY, LowLatencyCalls(tokens=(6, 3), hidden=1152, sms=1, word_tokens=4,
                                           cast="round", twice=True, rounds=3)),
    Workload("ll-sums", "sums that cross as words",
             _LOW_LATENCY, LowLatencyCalls(tokens=(4, 6, 0), topk=6, cast="bf16",
                                           reduce="rank", rounds=3), ranks=3),
    Workload("ll-sum-flags", "sums in parts behind flags, beside words; scales as exponents",
             _LOW_LATENCY, LowLatencyCalls(tokens=(3, 6, 5), hidden=512, word_tokens=4,
                                           cast="ue8m0", reduce="rank"), ranks=3),
    Workload("ll-many", "more rows than CTAs, of more words than a team of warps has threads",
             _LOW_LATENCY, LowLatencyCalls(tokens=(9, 7), hidden=2304, sms=1, topk=6, cast="bf16",
                                           idx_dtype="int32", word_tokens=0)),
    Workload("ll-again", "combines by a kept handle, whose rows lie where the last but one's did",
             _LOW_LATENCY, LowLatencyCalls(tokens=(6, 3), word_tokens=4, again=2)),
    Workload("ll-hooks", "each call in two launches",
             _LOW_LATENCY, LowLatencyCalls(tokens=(13, 3), hidden=128, topk=4, sms=3, cast="bf16",
                                           hook=True)),
    Workload("ll-hook-sums", "the same; sums, in words and behind flags",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 3), reduce="rank", word_tokens=4,
                                           hook=True)),
    Workload("ll-logfmt", "rows in LogFMT-10 that cross as words, and rows that are not encoded",
             _LOGFMT, LowLatencyCalls(tokens=(5, 0, 7), hidden=1536, topk=6, cast="bf16",
                                      logfmt=True, stats=True, rounds=3), ranks=3),
    Workload("ll-logfmt-flags", "the same in parts behind flags, beside words",
             _LOGFMT, LowLatencyCalls(tokens=(6, 3), hidden=2048, sms=1, topk=8, cast="bf16",
                                      logfmt=True, word_tokens=4, twice=True, again=2)),
    Workload("ll-logfmt-hooks", "the same, each call in two launches",
             _LOGFMT, LowLatencyCalls(tokens=(5, 3), hidden=512, sms=3, cast="bf16", logfmt=True,
                                      word_tokens=4, hook=True)),
    Workload("ll-queued", "three rounds that no host waits for; more experts than a warp has lanes",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 7), experts=24, sms=1, idx_dtype="int32",
                                           queued=True, rounds=3)),
    Workload("ll-between", "low-latency calls between others on one buffer",
             (*_LOW_LATENCY, *_PULL), LowLatencyCalls(tokens=(5, 3),
                                                      normal=Calls(tokens=(9, 7)))),
    Workload("ll-mistaken", "experts, casts and handles that only the device finds wrong",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 3), before=failing_low_latency.mistaken)),
    Workload("ll-logfmt-mistaken", "the same, of a combine in LogFMT-10",
             _LOGFMT, LowLatencyCalls(tokens=(5, 3), hidden=512, logfmt=True,
                                      before=failing_low_latency.mistaken)),
    Workload("ll-late", "a rank that does not come to a low-latency dispatch, then a reset",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 3),
                                           before=failing_low_latency.late_dispatch), ranks=3),
    Workload("ll-late-combine", "a rank that comes late to a low-latency combine, then a reset",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 3), word_tokens=4,
                                           before=failing_low_latency.late_combine), ranks=3),
    Workload("ll-late-sums", "the same; sums cross",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 3), word_tokens=4, reduce="rank",
                                           before=failing_low_latency.late_combine), ranks=3),
    Workload("ll-late-logfmt", "the same; rows cross in LogFMT-10",
             _LOGFMT, LowLatencyCalls(tokens=(5, 3), hidden=512, topk=8, word_tokens=4, logfmt=True,
                                      before=failing_low_latency.late_combine), ranks=3),
    Workload("ll-impatient", "rows that come later than the limit of a wait, their counts in time",
             _LOW_LATENCY, LowLatencyCalls(tokens=(5, 3), before=failing_low_latency.impatient)),
    Workload("ll-masked", "a rank is masked, late or aborted, and comes back",
             _MASKS, LowLatencyCalls(tokens=(5, 3), before=failing_low_latency.masked), ranks=3),
    Workload("ll-masked-flags", "the same; rows behind flags, in two launches",
             _MASKS, LowLatencyCalls(tokens=(5, 3), word_tokens=4, sms=3, hook=True,
                                     before=failing_low_latency.masked), ranks=3),
    Workload("ll-masked-sums", "the same; sums cross",
             _MASKS, LowLatencyCalls(tokens=(5, 3), word_tokens=4, reduce="rank",
                                     before=failing_low_latency.masked), ranks=3),
    Workload("ll-left", "a rank leaves while the others are in a low-latency dispatch",
             (*_LOW_LATENCY, "abort"), LowLatencyCalls(tokens=(5, 3),
                                                       before=failing_low_latency.left)),
)}
