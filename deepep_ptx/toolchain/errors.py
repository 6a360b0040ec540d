# SPDX-License-Identifier: MIT
"""The root of what the toolchain raises on bad input; each module derives its own."""


class ToolchainError(Exception):
    """Bad input to a generator or a check; the text starts with file:line or the tool's name."""
