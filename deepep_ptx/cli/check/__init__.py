# SPDX-License-Identifier: MIT
"""Kernels under the race checker of the CPU executor.

    workloads   small runs of real calls, which come to everything that synchronises
    rounds      the calls of one, their inputs and what has to come out
    failing     calls that fail, between others
    runs        each workload with each variant, scheduler and seed
    harness     a PTX file of the user's
    pool        runs side by side
    findings    what runs found, and verdicts
    executed    what no run has come to
    record      JSON, and replays of it
    report      text
    brief       the verdict of a few runs, for other commands
    command     `deepep-ptx check`
"""
