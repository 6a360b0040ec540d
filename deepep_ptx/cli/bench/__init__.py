# SPDX-License-Identifier: MIT
"""Times of calls beside what the links can do, of calls beside a GEMM, and of low-latency calls.

    case        one thing to measure: which call, on which shape, how
    calls       a case's call on one rank, and what has to come out
    rounds      correctness of all cases, then interleaved rounds: the core, for `tune` too
    plan        which cases, by the options of `bench intranode`
    launch      ranks as threads, or one process per GPU
    intranode   `bench intranode` on one rank
    peers       NCCL and DeepEP beside ours
    figures     times as spreads and bandwidths
    report      records (JSON) and the text for people
    plot        the picture
    overlap, overlap_report     `bench overlap`
    ll, ll_report   `bench ll`
    ll_case, ll_session     its cases, inputs and bytes; their calls, graphs and rounds
    ll_peers    DeepEP's low-latency calls beside ours
    command     `deepep-ptx bench`
"""
