# SPDX-License-Identifier: MIT
"""Reads ptx/variants.toml, the only list of variants, and multiplies its axes out."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepep_ptx.documents import toml_of
from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.toolchain.params import Layout

TABLE = "ptx/variants.toml"
SITES = ("source", "peer")
PATHS = ("vec", "bulk")

_KERNEL_KEYS = {
    "params": str,
    "co_resident": bool,
    "uses": list,
    "source": str,
    "arch": list,
    "version": str,
    "threads": int,
    "site": str,
    "policy": list,
    "defines": dict,
    "max_regs": int,
    "smem": int,
    "smem_per_rank": int,
    "rings": int,
    "stages": int,
    "stage_bytes": int,
}
_REQUIRED_KEYS = ("params", "arch", "threads", "max_regs")
# EP_MIN_STAGES and EP_STAGE_EXTRA of params.h.
MIN_STAGES = 2          # one is filled while another one drains
STAGE_EXTRA = 16        # bytes beside a stage
_RING_KEYS = ("rings", "stages", "stage_bytes")
_MAX_THREADS = 1024


def least_smem(variant: Mapping, num_ranks: int) -> int:
    """Bytes of shared memory without which a CTA of `variant`, a row of variants.json, does not run
    in a group of `num_ranks`."""
    return (variant["static_smem"] + variant["smem"] + num_ranks * variant["smem_per_rank"]
            + variant["rings"] * MIN_STAGES * (variant["stage_bytes"] + STAGE_EXTRA))


class TableError(ToolchainError):
    """variants.toml cannot be read; the text starts with the file and the table's name."""


@dataclass(frozen=True)
class Policy:
    """One instruction form of payload loads: where PTX defines it, its SASS on each arch."""

    name: str
    defined: tuple[str, ...]
    sass: dict[str, str]


@dataclass(frozen=True)
class Alias:
    """A user-facing choice of load forms: of a kernel's data path the first of `policies` that
    there is and that suits its site; with `undefined` any site.
    """

    name: str
    policies: tuple[str, ...]
    undefined: bool


@dataclass(frozen=True)
class Kernel:
    """What all variants of a kernel have in common.  Uses are cases of it for which an alias may
    have another variant; co_resident: its CTAs wait for each other, and for those of other ranks.
    """

    params: str
    co_resident: bool
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One PTX module: a kernel for one arch, with one path and one policy (None where it has none).

    `version` is that of its PTX: its arch's, or the kernel's own where that is above.
    `kernel_id` is its kernel's number in status records, `sass` what its policy's load must become.
    A launch takes `smem` + num_ranks * `smem_per_rank` bytes of dynamic shared memory, and for each
    of `rings` rings 16 bytes for a mbarrier and `stage_bytes` per stage; `stages` and `stage_bytes`
    are defaults.  `also` are the GPUs beside its arch's that it may run on, with the bytes of
    shared memory that a CTA can have there.
    """

    kernel: str
    kernel_id: int
    arch: str
    version: str
    path: str | None
    policy: str | None
    symbol: str
    source: str
    params: str
    param_bytes: int
    threads: int
    max_regs: int
    smem: int
    smem_per_rank: int
    rings: int
    stages: int
    stage_bytes: int
    defines: dict[str, int]
    site: str | None
    sass: str | None
    also: dict[str, int]

    @property
    def file(self) -> str:
        """Where the rendered text lies, below deepep_ptx/_ptx/."""
        return f"{self.arch}/{self.symbol}.ptx"

    def __str__(self) -> str:
        return f"{self.arch}/{self.symbol}"


@dataclass(frozen=True)
class Table:
    """All of variants.toml, in file order.

    paths: kernel that has data paths, or use of one -> those that aliases take, the preferred one
    first.
    """

    kernels: dict[str, Kernel]
    variants: tuple[Variant, ...]
    policies: dict[str, Policy]
    aliases: dict[str, Alias]
    paths: dict[str, tuple[str, ...]]

    @property
    def uses(self) -> dict[str, str]:
        """A use of a kernel -> the kernel."""
        return uses_of(self.kernels)

    def numbers(self) -> dict[str, int]:
        """Kernels, then uses of them -> index in the core's table of kernels."""
        return {name: number for number, name in enumerate([*self.kernels, *self.uses])}


def uses_of(kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """A use of one of `kernels` -> the kernel."""
    return {use: name for name, kernel in kernels.items() for use in kernel.uses}


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class _Reader:
    def __init__(self, document: dict, layout: Layout, name: str):
        self.document = document
        self.layout = layout
        self.name = name

    def error(self, where: str, message: str) -> TableError:
        return TableError(f"{self.name}: [{where}]: {message}")

    def known(self, where: str, what: str, given: Iterable[str], accepted: Iterable[str]) -> None:
        """Refuse each of `given` that is not `accepted`, naming the nearest that is."""
        accepted = list(accepted)
        for name in given:
            if name not in accepted:
                near = difflib.get_close_matches(str(name), accepted, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(accepted)}"
                raise self.error(where, f"unknown {what} {name!r}{hint}")

    def of_type(self, where: str, key: str, value, kind: type) -> None:
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise self.error(where, f"{key} is {value!r}, not of type {kind.__name__}")

    def section(self, where: str, value, keys: dict[str, type], required: Iterable[str]) -> dict:
        self.of_type(where, where, value, dict)
        self.known(where, "key", value, keys)
        for key in required:
            if key not in value:
                raise self.error(where, f"{key} is missing")
        for key, item in value.items():
            self.of_type(where, key, item, keys[key])
        return value

    def read(self) -> Table:
        self.known("", "table", self.document, ("policy", "alias", "path", "arch", "kernel"))
        self.arches = {
            name: self.arch(name, body) for name, body in self.document.get("arch", {}).items()
        }
        self.policies = {
            name: self.policy(name, body) for name, body in self.document.get("policy", {}).items()
        }
        aliases = {
            name: self.alias(name, body) for name, body in self.document.get("alias", {}).items()
        }
        bodies = self.document.get("kernel", {})
        self.kernels = {name: self.common(name, body) for name, body in bodies.items()}
        self.uses = uses_of(self.kernels)
        variants = [variant for name, body in bodies.items()
                    for variant in self.kernel(name, body)]
        paths = self.paths(variants)
        for alias in aliases.values():
            self.check_alias(alias, paths, variants)
        return Table(self.kernels, tuple(variants), self.policies, aliases, paths)

    def arch(self, name: str, body) -> str:
        where = f"arch.{name}"
        self.section(where, body, {"version": str, "also": dict}, ["version"])
        for target, cta_smem in body.get("also", {}).items():
            if not re.fullmatch(r"sm_\d+", target):
                raise self.error(where, f"also has {target!r}, not of the form 'sm_86'")
            self.of_type(where, f"also.{target}", cta_smem, int)
        return self.version(where, body["version"])

    def version(self, where: str, version: str) -> str:
        if not re.fullmatch(r"\d+\.\d+", version):
            raise self.error(where, f"version is {version!r}, not of the form '7.8'")
        return version

    def policy(self, name: str, body) -> Policy:
        where = f"policy.{name}"
        self.section(where, body, {"defined": list, "sass": object}, ["defined", "sass"])
        self.known(where, "site", body["defined"], SITES)
        sass = body["sass"]
        if isinstance(sass, str):
            sass = dict.fromkeys(self.arches, sass)
        self.of_type(where, "sass", sass, dict)
        self.known(where, "arch", sass, self.arches)
        return Policy(name, tuple(body["defined"]), sass)

    def alias(self, name: str, body) -> Alias:
        where = f"alias.{name}"
        self.section(where, body, {"policies": list, "undefined": bool}, ["policies"])
        self.known(where, "policy", body["policies"], self.policies)
        return Alias(name, tuple(body["policies"]), body.get("undefined", False))

    def paths(self, variants: list[Variant]) -> dict[str, tuple[str, ...]]:
        """What aliases take of each kernel with data paths, and of each use of one."""
        has: dict[str, dict[str, set[str]]] = {}         # kernel -> path -> archs
        for variant in variants:
            if variant.path:
                has.setdefault(variant.kernel, {}).setdefault(variant.path, set()).add(variant.arch)
        has |= {use: has[kernel] for use, kernel in self.uses.items() if kernel in has}
        given = self.document.get("path", {})
        self.known("path", "kernel", given, has)
        paths = {}
        for name, of_kernel in has.items():
            order = given.get(name, given.get(self.uses.get(name), list(of_kernel)))
            self.of_type("path", name, order, list)
            self.known("path", f"path of {name}", order, of_kernel)
            if len(of_kernel) > 1 and name not in given and self.uses.get(name) not in given:
                raise self.error("path", f"{name} is missing: it has {', '.join(of_kernel)}")
            archs = set().union(*of_kernel.values())
            if missing := archs.difference(*map(of_kernel.get, order)):
                raise self.error("path", f"{name} has none of {order} on "
                                         f"{', '.join(sorted(missing))}")
            paths[name] = tuple(order)
        return paths

    def common(self, name: str, body) -> Kernel:
        where = f"kernel.{name}"
        self.of_type(where, where, body, dict)
        if "params" not in body:
            raise self.error(where, "params is missing")
        self.known(where, "structure", [body["params"]], self.layout.structs)
        self.of_type(where, "co_resident", body.get("co_resident", False), bool)
        self.of_type(where, "uses", body.get("uses", []), list)
        taken = [name for name in body.get("uses", []) if name in self.document["kernel"]]
        if taken:
            raise self.error(where, f"uses has {taken[0]!r}, which is a kernel")
        return Kernel(body["params"], body.get("co_resident", False),
                      tuple(body.get("uses", [])))

    def kernel(self, name: str, body) -> list[Variant]:
        """A kernel's variants; one with data paths has a sub-table for each, over common keys."""
        where = f"kernel.{name}"
        paths = {k: v for k, v in body.items() if isinstance(v, dict) and k != "defines"}
        if not paths:
            return self.path(where, name, None, body)
        self.known(where, "path", paths, PATHS)
        common = {key: value for key, value in body.items() if key not in paths}
        return [
            variant
            for path, own in paths.items()
            for variant in self.path(f"{where}.{path}", name, path, common | own)
        ]

    def path(self, where: str, name: str, path: str | None, body) -> list[Variant]:
        self.section(where, body, _KERNEL_KEYS, _REQUIRED_KEYS)
        self.known(where, "arch", body["arch"], self.arches)
        policies = body.get("policy", [])
        self.known(where, "policy", policies, self.policies)
        if policies and "site" not in body:
            raise self.error(where, "policy needs a site: a policy's forms are for a site")
        if "site" in body:
            self.known(where, "site", [body["site"]], SITES)
        least = self.version(where, body.get("version", "0.0"))
        threads = body["threads"]
        if threads % 32 or not 32 <= threads <= _MAX_THREADS:
            raise self.error(
                where, f"threads is {threads}, not a multiple of 32 up to {_MAX_THREADS}"
            )
        for key, value in body.get("defines", {}).items():
            self.of_type(where, f"defines.{key}", value, int)
        if len({key in body for key in _RING_KEYS}) > 1:
            raise self.error(where, f"{', '.join(_RING_KEYS)} come together or not at all")
        if "stages" in body and (body["stages"] < MIN_STAGES or body["stage_bytes"] % 16):
            raise self.error(where, f"a ring has at least {MIN_STAGES} stages of a multiple of 16 "
                                    f"bytes, not {body['stages']} of {body['stage_bytes']}")
        for policy in policies:
            for arch in body["arch"]:
                if arch not in self.policies[policy].sass:
                    raise self.error(f"policy.{policy}", f"sass lacks {arch}, which {name} takes")
        return [
            Variant(
                kernel=name,
                kernel_id=list(self.kernels).index(name),
                arch=arch,
                version=max(least, self.arches[arch], key=_number),
                path=path,
                policy=policy,
                symbol="_".join(filter(None, ("ep", name, path, policy))),
                source=f"ptx/src/{'_'.join(filter(None, (body.get('source', name), path)))}.ptx",
                params=body["params"],
                param_bytes=self.layout.structs[body["params"]].size,
                threads=threads,
                max_regs=body["max_regs"],
                smem=body.get("smem", 0),
                smem_per_rank=body.get("smem_per_rank", 0),
                rings=body.get("rings", 0),
                stages=body.get("stages", 0),
                stage_bytes=body.get("stage_bytes", 0),
                defines=dict(body.get("defines", {})),
                site=body.get("site"),
                sass=self.policies[policy].sass[arch] if policy else None,
                also=self.document["arch"][arch].get("also", {}),
            )
            for arch in body["arch"]
            for policy in (policies or [None])
        ]

    def check_alias(self, alias: Alias, paths: dict, variants: list[Variant]) -> None:
        """An alias that leaves a kernel without a variant would fail at run time, on one call; so
        it picks one of each path with load forms: the GPU may have no room for the others."""
        forms: dict[tuple[str, str, str], list[Variant]] = {}
        for variant in variants:
            if variant.policy:
                key = variant.kernel, variant.path, variant.arch
                forms.setdefault(key, []).append(variant)
        for name, order in paths.items():
            kernel = self.uses.get(name, name)
            for (of, path, arch), group in forms.items():
                if (of == kernel and path in order
                        and not any(self.picks(alias, variant) for variant in group)):
                    raise self.error(f"alias.{alias.name}",
                                     f"picks no policy for kernel {name} on {arch}")

    def picks(self, alias: Alias, variant: Variant) -> bool:
        """Whether an alias may pick a variant."""
        defined = variant.site in self.policies[variant.policy].defined
        return variant.policy in alias.policies and (alias.undefined or defined)


def parse(text: str | bytes, layout: Layout, name: str = TABLE) -> Table:
    """Read the text of variants.toml; parameter sizes come from `layout`. Raises TableError."""
    try:
        document = toml_of(text.encode() if isinstance(text, str) else text)
    except ValueError as error:
        raise TableError(f"{name}: {error}") from error
    return _Reader(document, layout, name).read()


def load(root: Path, layout: Layout) -> Table:
    """Read variants.toml of the source tree `root`. Raises TableError, OSError."""
    return parse((Path(root) / TABLE).read_bytes(), layout)
