# SPDX-License-Identifier: MIT
"""`bench intranode` on one rank."""

import sys
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from deepep_ptx.cli import measure
from deepep_ptx.cli.bench import figures, peers, plot, report, rounds
from deepep_ptx.emu.coverage import not_executed


def rank_main(comm, plan):
    """Run the plan; rank 0 writes and prints what was found.  Returns the exit code.

    The record is written before any peer is timed, and again after each.
    """
    made = report.head("bench intranode", plan)
    links = links_of(comm, plan)
    with (bar_of(comm, plan.num_calls) as bar,
          rounds.Session(comm, plan.cases, seed=plan.seed, progress=bar.update,
                         timeout_s=plan.timeout_s, torch=torch_of(plan)) as session):
        session.check()
        times = None
        if session.machine.times and not session.wrong:
            times = session.rounds(session.calls, plan.rounds, plan.warmup, plan.host_rounds)
        outcome = session.outcome(times)
        bar.close()
        made = _record(made, plan, outcome, links)
        if comm.rank == 0:
            if outcome.counts:
                made["not_executed"] = not_executed(comm.executor)
            report.write(made, plan.out)
            print(report.text(made), flush=True)
        if times and plan.peers and plan.layout == "processes":
            _peers(comm, plan, session, made)
        if times and plan.plot and comm.rank == 0:
            plot.draw(made, plan.plot)
    return 1 if outcome.wrong else 0


def links_of(comm, plan):
    """Of the first two GPUs of the run, by rank 0; {} where it has one."""
    gpus = list(dict.fromkeys(plan.devices or ()))[:2]
    found = {}
    if comm.rank == 0 and len(gpus) > 1:
        # In a thread of its own: the rank's context stays current in this one.
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(measure.links, gpus).result()
    return comm.allgather(found)[0]


def bar_of(comm, total):
    """A bar on rank 0, and only on a terminal."""
    return tqdm(total=total, unit="call", delay=1, leave=False,
                disable=None if comm.rank == 0 else True)


def torch_of(plan):
    """torch where arrays are its tensors: one process per GPU."""
    return sys.modules["torch"] if plan.layout == "processes" else None


def _record(made, plan, outcome, links):
    if outcome.wrong:
        return report.with_wrong(made, outcome.wrong)
    if outcome.counts:
        cases = [figures.counts_of(*of_case) for of_case in
                 zip(plan.cases, outcome.counts, outcome.rows, outcome.sms, strict=True)]
    else:
        cases = [figures.figures_of(case, times, rows, sms, plan.devices, links)
                 for case, times, rows, sms in
                 zip(plan.cases, outcome.times, outcome.rows, outcome.sms, strict=True)]
    for case, launched in zip(cases, outcome.launched, strict=True):
        case["launched"] = launched
    return made | {"links": links, "cases": cases, "peers": []}


def _peers(comm, plan, session, made):
    for peer in peers.PEERS:
        found = peers.measured(peer, comm, plan, session, made["links"])
        made["peers"].append(found)
        if comm.rank == 0:
            report.write(made, plan.out)
            print(report.peers_text(found), flush=True)
