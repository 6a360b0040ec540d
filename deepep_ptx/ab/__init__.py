# SPDX-License-Identifier: MIT
"""A/B of a kernel's variants: which instruction form is quicker, and whether that is certain.

    plan        what is compared, on which shapes, in which order
    job         the inputs of all ranks and what has to come out
    machine     arrays, flushes and measuring on a GPU; counts on the CPU executor
    run         correctness, then interleaved rounds, on every rank
    statistics  medians, intervals, verdicts in words
    sass        what the assembler made of the variants
    report      the record (JSON) and the text for people
    command     `deepep-ptx ab`
"""
