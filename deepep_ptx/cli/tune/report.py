# SPDX-License-Identifier: MIT
"""What a tuning run found: the tuning file's contents, and texts for people."""

import datetime

from deepep_ptx import __version__
from deepep_ptx.cli.measure import driver_version
from deepep_ptx.cli.tables import aligned, table
from deepep_ptx.cli.tune.plan import ITEMSIZES, WARMUP, Candidate
from deepep_ptx.sm_model import choose_sms, rates_of
from deepep_ptx.tuning import Entry, Header, size_class

SMS_SEARCHED = 132      # by the model, for its column


def header(plan):
    """The `Header` of a file that `plan` makes here and now."""
    return Header(package=__version__, gpu=plan.gpu, ranks=plan.ranks, nodes=1,
                  date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                  driver=driver_version(), seed=plan.seed,
                  shape={"hidden": plan.hidden, "topk": plan.topk, "experts": plan.experts,
                         "routing": "uniform", "devices": list(plan.devices)})


def entries(plan, finished):
    """An `Entry` for each class of calls that has a winner.

    Where cases are of one class, the one with most tokens stands for it.
    """
    made = {}
    for case in plan.cases:
        result = finished.get(str(case))
        if result is None or result["winner"] is None:
            continue
        best = result["candidates"][result["winner"]]
        itemsize = ITEMSIZES[case.dtype]
        entry = Entry(case.op, itemsize, size_class(case.tokens),
                      size_class(plan.hidden * itemsize), best["sms"], best["policy"],
                      best["knobs"], round(best["median_us"], 3))
        made[entry.key] = entry
    return list(made.values())


def dry_run(plan):
    """What the plan would do."""
    rows = [("case", "candidates", "calls at most", "s at most")]
    rows += [(str(case), str(len(plan.candidates[case.op])), f"{plan.num_calls(case):,}",
              f"{plan.estimate_s(case):.0f}") for case in plan.cases]
    candidates = [f"{op}: {', '.join(sorted({one.policy for one in found}))} x "
                  f"{', '.join(map(str, sorted({one.sms for one in found})))} SMs"
                  + "".join(f" x {name} {', '.join(map(str, sorted(values)))}"
                            for name, values in _knobs(found).items())
                  for op, found in plan.candidates.items()]
    calls = sum(map(plan.num_calls, plan.cases))
    seconds = sum(map(plan.estimate_s, plan.cases))
    return "\n".join([
        f"would tune {plan.ranks} ranks on {plan.gpu}, GPUs {', '.join(map(str, plan.devices))}: "
        f"hidden {plan.hidden}, top-{plan.topk} of {plan.experts} experts, seed {plan.seed}",
        *candidates,
        f"rungs of {', '.join(map(str, plan.rungs()))} rounds, each after {WARMUP}; slower ones "
        "are dropped after each",
        "", *table(rows), "",
        f"{calls:,} calls at most, each a launch of the op's kernel; about {seconds:.0f} s if "
        "nobody were dropped, by the model of docs/tuning.md",
    ])


def text(plan, finished):
    """What came of the cases so far."""
    rows = [("case", "winner", "us", "p10 .. p90", "quickest", "us", "model's SMs", "dropped")]
    wrong = []
    for case in plan.cases:
        result = finished.get(str(case))
        if result is None:
            rows.append((str(case), "not measured", *[""] * 6))
            continue
        found = result["candidates"]
        wrong += [f"WRONG  {one['wrong']}" for one in found if one["wrong"]]
        if result["winner"] is None:
            rows.append((str(case), "none is right", *[""] * 6))
            continue
        best, quickest = (found[result[name]] for name in ("winner", "quickest"))
        rows.append((str(case), _name(best), f"{best['median_us']:.1f}",
                     f"{best['p10_us']:.1f} .. {best['p90_us']:.1f}", _name(quickest),
                     f"{quickest['median_us']:.1f}", str(_model_sms(plan, case, best["policy"])),
                     f"{sum(one['dropped'] for one in found)} of {len(found)}"
                     + ("" if result["complete"] else ", cut short")))
    return "\n".join([f"{plan.ranks} ranks on {plan.gpu}, hidden {plan.hidden}, top-{plan.topk} of "
                      f"{plan.experts} experts, seed {plan.seed}", *aligned(rows), *wrong])


def _name(found):
    return str(Candidate(found["sms"], found["policy"], tuple(found["knobs"].items())))


def _model_sms(plan, case, policy):
    return choose_sms(plan.work(case, policy), rates_of(plan.gpu), SMS_SEARCHED)


def _knobs(candidates):
    values = {}
    for candidate in candidates:
        for name, value in candidate.knobs:
            values.setdefault(name, set()).add(value)
    return values
