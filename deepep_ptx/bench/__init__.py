# SPDX-License-Identifier: MIT
"""Times of calls beside what the links can do, and of calls beside a GEMM.

    case        one thing to measure: which call, on which shape, how
    calls       a case's call on one rank, and what has to come out
    rounds      correctness of all cases, then interleaved rounds: the core, for `tune` too
"""
