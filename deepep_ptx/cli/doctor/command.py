# SPDX-License-Identifier: MIT
"""`deepep-ptx doctor`: what is there, what is missing, and how to get it."""

from dataclasses import asdict

from deepep_ptx.cli import doctor
from deepep_ptx.cli.tables import print_json


def add(commands):
    parser = commands.add_parser(
        "doctor", help="checks the installation, GPUs, their links and the environment",
        description="One line per check: ok, warning (works, or works on the CPU executor), or "
                    "problem.  Exit code 1 where there is a problem.")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=_doctor)


def _doctor(args):
    results = []
    for result in doctor.examine():
        results.append(result)
        if not args.json:        # at once: some checks take seconds
            print(f"{result.status:<8} {result.check:<15} {result}", flush=True)
    counts = {status: sum(result.status == status for result in results)
              for status in doctor.STATUSES}
    if args.json:
        print_json({"counts": counts, "checks": [asdict(result) for result in results]})
    else:
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if counts[doctor.PROBLEM] else 0
