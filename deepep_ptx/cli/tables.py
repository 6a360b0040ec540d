# SPDX-License-Identifier: MIT
"""Columns of text."""

import json


def aligned(rows):
    """One line per row of strings, its columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def table(rows, left=1):
    """One line per row of strings: the first `left` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if at < left else cell.rjust(width)
                      for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows]


def print_json(document):
    """Print a document for programs to read."""
    print(json.dumps(document, indent=1))
