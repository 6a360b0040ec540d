# SPDX-License-Identifier: MIT
"""A/B of a kernel's variants: which instruction form is quicker, and whether that is certain.

    plan        what is compared, on which shapes, in which order
    run         correctness, then interleaved rounds, on every rank
    sass        what the assembler made of the variants
    report      the record (JSON) and the text for people
    command     `deepep-ptx ab`

What it has in common with other measurements is in `deepep_ptx.cli.measure`.
"""
