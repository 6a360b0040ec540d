# SPDX-License-Identifier: MIT
"""Kernels under the race checker of the CPU executor.

    workloads   small runs of real calls, which come to everything that synchronises
"""
