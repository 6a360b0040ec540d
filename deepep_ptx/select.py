# SPDX-License-Identifier: MIT
"""Which variant of each kernel runs: the shipped table, the policy asked for, the architecture."""

import difflib
import functools
import os
import re
from importlib import resources

from deepep_ptx.errors import DeepEPError
from deepep_ptx.rendered import read_index
from deepep_ptx.toolchain.variants import least_smem

DEFAULT_POLICY = "fast"
_POLICY_VARIABLES = ("DEEPEP_PTX_POLICY", "DISABLE_AGGRESSIVE_PTX_INSTRS")
_DEEPEP_SWITCH = {"1": "safe", "0": "aggressive"}


@functools.cache
def load_table():
    """The shipped table: {"variants": [...], "policies": ..., "aliases": ..., "uses": ...,
    "paths": ...}.

    Raises:
        DeepEPError: the file is damaged.
        FileNotFoundError: it is not there.
    """
    return whole(read_index, rendered() / "variants.json")


def rendered():
    """The folder of the rendered PTX and of what is known about it."""
    return resources.files("deepep_ptx") / "_ptx"


def read_text(variant):
    """The rendered PTX of a variant; raises as `load_table`."""
    return whole(lambda path: path.read_text(encoding="utf-8"), rendered() / variant["file"])


def whole(read, path):
    """What `read` makes of a file of the package; `DeepEPError` where it is damaged."""
    try:
        return read(path)
    except ValueError as error:
        raise DeepEPError(f"{path}: {error}; build again: pip install ., or make build in a "
                          "clone") from error


def is_policy_requested(argument=None, environ=None):
    """Whether anybody asks for a policy: the argument or a variable."""
    environ = os.environ if environ is None else environ
    return argument is not None or any(environ.get(name) for name in _POLICY_VARIABLES)


def requested_policy(argument=None, environ=None):
    """The policy asked for and who asked: the argument, then DEEPEP_PTX_POLICY, then DeepEP's
    DISABLE_AGGRESSIVE_PTX_INSTRS (1 = safe, 0 = aggressive), else `fast`.

    Returns:
        (name, origin); origin begins the error texts about it.

    Raises:
        TypeError: the argument is not a string.
        ValueError: DISABLE_AGGRESSIVE_PTX_INSTRS is neither 0 nor 1.
    """
    environ = os.environ if environ is None else environ
    if argument is not None:
        if not isinstance(argument, str):
            raise TypeError(f"policy: must be a string or None, got {type(argument).__name__}")
        return argument, "policy"
    if environ.get("DEEPEP_PTX_POLICY"):
        return environ["DEEPEP_PTX_POLICY"], "DEEPEP_PTX_POLICY"
    switch = environ.get("DISABLE_AGGRESSIVE_PTX_INSTRS")
    if not switch:
        return DEFAULT_POLICY, "policy"
    if switch not in _DEEPEP_SWITCH:
        raise ValueError(f"DISABLE_AGGRESSIVE_PTX_INSTRS: must be 0 or 1, got {switch!r}")
    return _DEEPEP_SWITCH[switch], "DISABLE_AGGRESSIVE_PTX_INSTRS"


def choose(policy, arch, table=None, origin="policy", *, cta_smem=None, num_ranks=1):
    """The variant of each kernel.

    Args:
        policy: an alias (`fast`, `safe`, `aggressive`), a policy, `bulk`, or a variant's symbol.
            An alias is about load forms: it takes, per kernel, the quickest data path that runs
            here, and of that the first of its policies that is defined at the kernel's load site;
            a data path without payload loads (`bulk`) is defined everywhere.  A policy's name, and
            `bulk`, take it wherever a kernel has it, defined or not, and `fast` elsewhere.  A
            symbol takes that variant, and `fast` for the other kernels.
        arch: the executor's, such as "sm_90"; the newest variants up to it are taken.
        table: as `load_table()` gives it.
        origin: who asked for the policy.
        cta_smem: bytes of shared memory that a CTA can have, see `least_smem`; variants that take
            more are as if they were not there.  None: as much as they take.
        num_ranks: of the group, for which they take it.

    Returns:
        dict: name of a kernel, or of a use of one, -> its row of the table.

    Raises:
        ValueError: unknown policy, with the nearest names; or an architecture, a combination or
            an amount of shared memory for which a kernel has no variant.
    """
    table = load_table() if table is None else table
    kernels = _by_kernel(table, arch)
    if cta_smem is not None:
        kernels = _fitting(kernels, policy, origin, cta_smem, num_ranks)
    kernels |= {use: kernels[kernel] for use, kernel in table["uses"].items() if kernel in kernels}
    chosen = {name: _pick(name, variants, policy, table) for name, variants in kernels.items()}
    _require_known(policy, table, arch, origin)
    missing = sorted({table["uses"].get(name, name) for name, row in chosen.items() if row is None})
    if missing:
        raise ValueError(f"{origin}: {policy!r} has no defined variant of {', '.join(missing)}")
    return chosen


def runs(name, arch, cta_smem=None, num_ranks=1):
    """Whether `choose` takes `name`, a policy or a data path: some kernel has it here."""
    return any(name == (variant["policy"] or variant["path"])
               and (cta_smem is None or least_smem(variant, num_ranks) <= cta_smem)
               for variants in _by_kernel(load_table(), arch).values() for variant in variants)


def is_defined(variant):
    """Whether PTX defines a variant's payload loads at their site; None without a site."""
    if variant["site"] is None:
        return None
    defined = load_table()["policies"]
    return not variant["policy"] or variant["site"] in defined[variant["policy"]]["defined"]


def _fitting(kernels, policy, origin, cta_smem, num_ranks):
    """Kernel -> those of its variants that run with so much shared memory."""
    needs = {variant["symbol"]: least_smem(variant, num_ranks)
             for variants in kernels.values() for variant in variants}
    asked = [variant["symbol"] for variants in kernels.values() for variant in variants
             if policy in (variant["symbol"], variant["policy"] or variant["path"])]
    if asked and min(map(needs.get, asked)) > cta_smem:
        raise ValueError(f"{origin}: {policy!r} has no variant for {cta_smem} bytes of shared "
                         f"memory per CTA; {asked[0]} takes {needs[asked[0]]}")
    fitting = {kernel: [v for v in variants if needs[v["symbol"]] <= cta_smem]
               for kernel, variants in kernels.items()}
    for kernel, variants in fitting.items():
        if not variants:
            raise ValueError(f"arch: no variant of {kernel} runs with {cta_smem} bytes of shared "
                             "memory per CTA")
    return fitting


def _capability(arch):
    match = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if not match:
        raise ValueError(f"arch: must be sm_ and a number, got {arch!r}")
    return int(match[1])


def _by_kernel(table, arch):
    """Kernel -> its variants of the newest architecture that `arch` runs."""
    limit = _capability(arch)
    kernels = {variant["kernel"]: [] for variant in table["variants"]}
    for variant in table["variants"]:
        if _capability(variant["arch"]) <= limit:
            kernels[variant["kernel"]].append(variant)
    for kernel, variants in kernels.items():
        if not variants:
            raise ValueError(f"arch: no variant of {kernel} runs on {arch}")
        newest = max(_capability(variant["arch"]) for variant in variants)
        kernels[kernel] = [v for v in variants if _capability(v["arch"]) == newest]
    return kernels


def _pick(kernel, variants, policy, table):
    by_symbol = {variant["symbol"]: variant for variant in variants}
    if policy in by_symbol:
        return by_symbol[policy]
    by_policy = {variant.get("policy") or variant.get("path"): variant for variant in variants}
    if by_policy.keys() == {None}:
        return variants[0]
    if policy in table["policies"] or policy in _bare_paths(table["variants"]):
        return by_policy.get(policy) or _first_of(DEFAULT_POLICY, kernel, variants, table)
    alias = policy if policy in table["aliases"] else DEFAULT_POLICY
    return _first_of(alias, kernel, variants, table)


def _bare_paths(variants):
    """Data paths whose variants have no policy: chosen by their own name, like a policy."""
    return {variant["path"] for variant in variants
            if variant.get("path") and not variant["policy"]}


def _first_of(alias, kernel, variants, table):
    """Of a kernel's variants, or those for a use of it, the alias's; None where it has none."""
    rule = table["aliases"][alias]
    for path in table["paths"][kernel]:
        forms = {variant["policy"]: variant for variant in variants if variant["path"] == path}
        if None in forms:
            return forms[None]
        for policy in rule["policies"]:
            variant = forms.get(policy)
            if variant and (rule["undefined"]
                            or variant["site"] in table["policies"][policy]["defined"]):
                return variant
    return None


def _require_known(policy, table, arch, origin):
    variants = [v for group in _by_kernel(table, arch).values() for v in group]
    symbols = sorted(variant["symbol"] for variant in variants)
    known = [*table["aliases"], *table["policies"], *sorted(_bare_paths(variants))]
    if policy in known or policy in symbols:
        return
    others = {variant["arch"] for variant in table["variants"]
              if policy in (variant["symbol"], variant["policy"] or variant.get("path"))}
    if others:
        raise ValueError(f"{origin}: {policy!r} has no variant that runs on {arch}, only on "
                         f"{', '.join(sorted(others))}")
    nearest = difflib.get_close_matches(policy, [*known, *symbols], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise ValueError(f"{origin}: unknown policy {policy!r}; {hint}"
                     f"accepted are {', '.join(known)}, or a variant's symbol")
