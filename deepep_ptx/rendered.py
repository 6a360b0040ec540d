# SPDX-License-Identifier: MIT
"""What `make gen` leaves in the package beside the rendered PTX: read, and checked as far as
anybody uses it."""

from deepep_ptx.documents import check_fields, read_json

_TEXT = (str, type(None))
_ROW = {"kernel": str, "arch": str, "path": _TEXT, "policy": _TEXT, "site": _TEXT, "symbol": str,
        "file": str, "source": str, "params": str, "param_bytes": int, "threads": int, "smem": int,
        "static_smem": int, "smem_per_rank": int, "rings": int, "stages": int, "stage_bytes": int,
        "max_regs": int}
_FIGURES = {"sha256": str, "registers": int, "spills": int, "shared": int}


def read_index(path):
    """variants.json: {"inputs": ..., "variants": [...], "policies": {...}, "aliases": {...},
    "uses": {...}, "paths": {...}}.

    Raises:
        ValueError: it is damaged; the text says how, without the file's name.
        OSError: it cannot be read.
    """
    index = read_json(path)
    check_fields(index, {"inputs": str, "variants": list, "policies": dict, "aliases": dict,
                         "uses": dict, "paths": dict}, "the file")
    for number, row in enumerate(index["variants"]):
        check_fields(row, _ROW, f"variants[{number}]")
    for name, policy in index["policies"].items():
        check_fields(policy, {"defined": list}, f"policy {name}")
    for name, alias in index["aliases"].items():
        check_fields(alias, {"policies": list, "undefined": bool}, f"alias {name}")
        _check_names(alias["policies"], f"alias {name}", "policies")
    kernels = {row["kernel"] for row in index["variants"] if row["path"] is not None}
    uses = kernels | {use for use, kernel in index["uses"].items() if kernel in kernels}
    check_fields(index["paths"], dict.fromkeys(uses, list), "paths")
    for kernel, order in index["paths"].items():
        _check_names(order, f"kernel {kernel}", "data paths")
    for row in index["variants"]:
        if row["policy"] is not None and row["policy"] not in index["policies"]:
            raise ValueError(f"{row['symbol']} has the policy {row['policy']!r:.60}")
    return index


def _check_names(order, whose, what):
    if not isinstance(order, list) or not all(isinstance(item, str) for item in order):
        raise ValueError(f"{whose} has {order!r:.60} for a list of {what}")


def read_figures(path):
    """figures.json: {"ptxas": version, "nvdisasm": version, "variants": {file: figures}}; raises
    as `read_index`."""
    figures = read_json(path)
    check_fields(figures, {"ptxas": str, "nvdisasm": str, "variants": dict}, "the file")
    for file, line in figures["variants"].items():
        check_fields(line, _FIGURES, file)
    return figures
