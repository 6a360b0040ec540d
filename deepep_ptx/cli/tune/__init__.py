# SPDX-License-Identifier: MIT
"""`deepep-ptx tune`: measures how calls are quickest on this machine, and writes a tuning file.

    plan        cases, candidates of each, rounds; what they cost
    decide      one case: wrong candidates, rounds, who is dropped when, who wins
    sweep       all cases of a plan within a budget
    state       finished cases, so that an interrupted run can go on
    measure     a case's candidates on GPUs, by `deepep_ptx.cli.bench.rounds`
    report      the tuning file's contents and the texts for people
    compare     two tuning files side by side
    command     options in, file and exit code out
"""
