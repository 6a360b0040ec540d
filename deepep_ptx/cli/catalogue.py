# SPDX-License-Identifier: MIT
"""The shipped variants as people ask for them: by name, with who picks them and what they cost."""

import difflib
import functools
import sys
from pathlib import Path

import deepep_ptx
from deepep_ptx import select
from deepep_ptx.rendered import read_figures
from deepep_ptx.toolchain import variants
from deepep_ptx.toolchain.lock import FIGURES
from deepep_ptx.toolchain.ptx_text import digest
from deepep_ptx.toolchain.render import current

STALE = "the rendered PTX is not what ptx/ holds now"


def is_stale(root=None):
    """Whether the sources in a clone have changed since the text that runs was rendered from them.

    root: of the clone; None: of this package.  Without sources nothing is stale.
    """
    root = Path(deepep_ptx.__file__).parents[1] if root is None else root
    return (root / variants.TABLE).is_file() and not current(root)


def warn_if_stale():
    """Say on stderr, once a figure or a verdict was printed, that it is about the older text."""
    if is_stale():
        sys.stdout.flush()
        print(f"deepep-ptx: warning: {STALE}, and all of this is about the older text: `make gen`",
              file=sys.stderr)


def archs():
    """Targets that variants ship for, oldest first."""
    return tuple(sorted({variant["arch"] for variant in select.load_table()["variants"]}))


def find(names=(), arch=None, policy=None):
    """Rows of the shipped table, in its order.

    Args:
        names: kernels, which stand for all their variants, or symbols; none = every variant.
        arch: "sm_80" or "sm_90"; None = both.
        policy: of each kernel, only what this policy picks, see `select.choose`; None = all.

    Raises:
        ValueError: an unknown name, with the nearest ones; a policy that is unknown, or that picks
            none of the named variants.
    """
    table = select.load_table()["variants"]
    _require_known(names, table)
    found = [variant for variant in table
             if (not names or variant["kernel"] in names or variant["symbol"] in names)
             and arch in (None, variant["arch"])]
    if policy is not None:
        picked = _picked(policy, arch)
        found = [variant for variant in found if variant in picked]
    if not found:
        raise ValueError(f"no variant of {', '.join(names)} is for {arch}" if policy is None
                         else f"policy: {policy!r} picks other variants of {', '.join(names)}")
    return found


def _require_known(names, table):
    kernels = list(dict.fromkeys(variant["kernel"] for variant in table))
    known = [*kernels, *dict.fromkeys(variant["symbol"] for variant in table)]
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
            raise ValueError(f"unknown kernel or symbol {name!r}; {hint}"
                             f"kernels are {', '.join(kernels)}")


def _picked(policy, arch):
    """The rows that a policy picks on one target, or on all that have it."""
    chosen, refusal = [], None
    for target in [arch] if arch else archs():
        try:
            chosen += select.choose(policy, target).values()
        except ValueError as error:      # `bulk`, say, is not there on sm_80
            refusal = error
    if not chosen:
        raise refusal
    return chosen


def describe(variant):
    """A row as a plain document.

    defined: whether PTX defines its payload loads at their site, None without payload loads to
    speak of.  picked_by: aliases that pick it on its own target.  registers, spills, static_smem:
    as ptxas gave them, None where the shipped figures are of another text, or there are none.
    """
    figures = _figures(variant)
    return {
        **{key: variant[key] for key in ("kernel", "arch", "path", "policy", "site")},
        "defined": select.is_defined(variant),
        **{key: variant[key] for key in ("symbol", "threads", "smem", "smem_per_rank", "rings",
                                         "stages", "stage_bytes")},
        "static_smem": variant.get("static_smem", figures.get("shared")),
        "registers": figures.get("registers"),
        "spills": figures.get("spills"),
        "picked_by": [alias for alias in select.load_table()["aliases"]
                      if variant in select.choose(alias, variant["arch"]).values()],
    }


@functools.cache
def _load_figures():
    path = select.rendered() / FIGURES
    return select.whole(read_figures, path) if path.is_file() else {}


def figures_tools():
    """The program that gave the figures, such as "ptxas 13.0.88"; None where none ship."""
    version = _load_figures().get("ptxas")
    return version and f"ptxas {version}"


def _figures(variant):
    figures = _load_figures().get("variants", {}).get(variant["file"], {})
    current = figures and figures["sha256"] == digest(select.read_text(variant))
    return figures if current else {}
