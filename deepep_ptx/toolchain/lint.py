# SPDX-License-Identifier: MIT
"""What must hold for PTX sources, and for the machine code that each variant becomes.

The assembler may merge, move or delete what a memory model lets it; these rules say where it did.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepep_ptx.emu.decode import KernelImage
from deepep_ptx.toolchain.front_end import decode_rendered
from deepep_ptx.toolchain.preprocess import RenderError
from deepep_ptx.toolchain.proxy_order import check_proxies
from deepep_ptx.toolchain.ptx_text import Rendered
from deepep_ptx.toolchain.ptxas import Assembly, AssemblyError, Sass, ToolError, Tools, assemble
from deepep_ptx.toolchain.render import render_with_origins
from deepep_ptx.toolchain.tickets import Ticket, check_tickets, tickets_of
from deepep_ptx.toolchain.variants import Table, Variant, least_smem

SPDX = "// SPDX-License-Identifier: MIT"
MACRO_LINES = 8
# Defines of variants.toml that a routine's text may depend on: whether ranks may be masked.
CONDITIONS = ("SHRINK",)
WAIT_LINES = 16  # a wait carries its time limit and its abort test
SM_REGISTERS = 1 << 16

_OPCODE = r"\s*(?:@!?[%$\w]+\s+)?"
_STRONG_LOAD = re.compile(_OPCODE + r"ld\.(?:acquire|relaxed|volatile)\b\S*\.global\b")
_NC_LOAD = re.compile(_OPCODE + r"ld\.global\.nc\b")
_BRANCH = re.compile(_OPCODE + r"bra(?:\.uni)?\s+([$\w]+);")
_PTX_LABEL = re.compile(r"\s*([$\w]+):$")
_LOADED = r"\.global\b\S*\s+[^,]+,\s*(\[[^\]]+\])"
_POLL = re.compile(_OPCODE + r"ld\.(?:relaxed\.\w+|acquire\.(?!sys)\w+|volatile)" + _LOADED)
_SYS_ACQUIRE = re.compile(_OPCODE + r"ld\.acquire\.sys" + _LOADED)
_PAYLOAD = re.compile(r"#define LD_PAYLOAD_V4\s+(\S+)")


# What says of other memory that it is written, a field of params.h or a value, and its store.
PUBLISHED = {
    **dict.fromkeys(
        ("TOT_TICKET", "STAT_VALID", "v_progress", "v_done"),
        "st.release.sys.global",
    ),
    "CTL_NUMBERED": "red.release.gpu.global",
}
# Macros that order memory, and the instruction that does it.
ORDERING = {
    "RAISE_FLAG": "st.release.sys.global",
    "FENCE_RELEASE": "fence.acq_rel.sys",
    "ARRIVE": "atom.acq_rel.gpu.global",
}
_PUBLISH = re.compile(rf"\b((st|red)\.\S+)\s+\[[^;]*\b({'|'.join(PUBLISHED)})\b")
_WEAK_LOAD = re.compile(r"\bld\.(?:weak\.)?global\b\S*")

# -- sources ------------------------------------------------------------------


def check_sources(root: Path) -> list[str]:
    """Findings, each `file:line: what`, over ptx/**/*.{ptx,inc} but what is generated."""
    root = Path(root)
    files = [
        path
        for pattern in ("*.ptx", "*.inc")
        for path in (root / "ptx").rglob(pattern)
        if path.parent.name != "gen"
    ]
    return [
        f"{path.relative_to(root).as_posix()}:{line}: {message}"
        for path in sorted(files)
        for line, message in _check_file(path, path.relative_to(root / "ptx").parts[0])
    ]


def _check_file(path: Path, folder: str) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    yield from _check_source(text, folder)
    yield from _check_order(text, path.name)


def _check_order(text: str, name: str) -> Iterator[tuple[int, str]]:
    """What publishes is a release at its readers' scope, and what waits loads nothing weakly.

    By name, in the sources: rendered, a flag is a number.  That a wait acquires what it polled is
    checked in the rendered text.
    """
    lines = [line.split("//")[0] for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        for opcode, kind, word in _PUBLISH.findall(line):
            want = PUBLISHED[word]
            if want.startswith(f"{kind}.") and not opcode.startswith(want):
                yield number, f"{opcode} to {word}, which publishes: it has to be {want}"
        if name.startswith("wait_") and (match := _WEAK_LOAD.search(line)):
            yield number, f"{match[0]} in a wait: the word changes, the load has to be strong"
        match = re.match(r"#define\s+(\w+)", line)
        if match and match[1] in ORDERING:
            last = number
            while lines[last - 1].endswith("\\"):
                last += 1
            if ORDERING[match[1]] not in "".join(lines[number - 1 : last]):
                yield number, f"macro {match[1]} has no {ORDERING[match[1]]}"


def _check_source(text: str, folder: str) -> Iterator[tuple[int, str]]:
    routine = folder in ("src", "role")
    lines = text.splitlines()
    if not lines or lines[0] != SPDX:
        yield 1, f"the first line is not `{SPDX}`"
    number = 0
    while number < len(lines):
        first, line = number + 1, lines[number]
        while line.startswith("#define") and lines[number].endswith("\\"):
            number += 1
        number += 1
        if match := re.match(r"#define\s+(\w+)", line):
            length = number - first + 1
            limit = WAIT_LINES if match[1].startswith("WAIT_") else MACRO_LINES
            if routine and length > 1:
                yield first, (f"macro {match[1]} of {length} lines: it belongs in lib/, policy/ or "
                              f"arch/")
            elif length > limit:
                yield first, f"macro {match[1]} takes {length} lines; {limit} are allowed"
        elif routine and re.match(r"#\s*(if|elif)", line) and not _is_condition(line):
            yield first, "conditional text: say it in variants.toml, a policy or arch/"
        elif re.match(_OPCODE + r"trap\b", line):
            yield first, "trap: a kernel never traps, it reports and returns"


def _is_condition(line: str) -> bool:
    return line.split() in [["#if", name] for name in CONDITIONS]


# -- machine code -------------------------------------------------------------


def check_variant(variant: Variant, rendered: Rendered, root: Path, tools: Tools) -> list[str]:
    """Findings about one variant, with the source's file and line where there is one."""
    try:
        assembly = assemble(rendered.text, variant.arch, tools)
        image = decode_rendered(rendered)
        tickets = tickets_of(rendered)
    except AssemblyError as error:
        return [f"{_place(rendered, line, variant)}: {text}" for line, text in error.messages]
    except ToolError as error:
        return [f"{variant}: {error}"]
    except RenderError as error:
        return [str(error)]
    return [
        *(f"{variant}: {text}" for text in _check_resources(variant, image, assembly)),
        *(
            f"{_place(rendered, line, variant)}: {text}"
            for line, text in (
                *_check_payload(variant, rendered, assembly, root),
                *_check_polls(rendered, assembly),
                *_check_waits(rendered),
                *check_proxies(variant, rendered),
                *check_tickets(tickets, assembly),
            )
        ),
        *(
            finding
            for target, cta_smem in variant.also.items()
            if least_smem(vars(variant) | {"static_smem": image.shared_bytes}, 1) <= cta_smem
            for finding in _check_target(variant, rendered, target, tickets, tools)
        ),
    ]


def _check_target(
    variant: Variant, rendered: Rendered, target: str, tickets: list[Ticket], tools: Tools
) -> Iterator[str]:
    """Findings about a variant on a GPU that is not of its arch, but runs it."""
    try:
        assembly = assemble(rendered.text, target, tools)
    except AssemblyError as error:
        for line, text in error.messages:
            yield f"{_place(rendered, line, variant)}: for {target}: {text}"
        return
    except ToolError as error:
        yield f"{variant}: for {target}: {error}"
        return
    if assembly.spills:
        yield f"{variant}: for {target}: {assembly.spills} bytes of spills"
    if assembly.registers * variant.threads > SM_REGISTERS:
        yield (f"{variant}: for {target}: {assembly.registers} registers of each of "
               f"{variant.threads} threads: an SM has {SM_REGISTERS}")
    for line, text in check_tickets(tickets, assembly):
        yield f"{_place(rendered, line, variant)}: for {target}: {text}"


def rendered_variants(table: Table, root: Path) -> list[tuple[Variant, Rendered]]:
    """All variants with their texts, in table order. Raises RenderError.

    One after the other: pcpp has global state.
    """
    return [(variant, render_with_origins(variant, root)) for variant in table.variants]


def check_variants(
    work: list[tuple[Variant, Rendered]], root: Path, tools: Tools
) -> list[str]:
    """Findings about variants, in their order; two at a time: a thread waits for a tool."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda item: check_variant(*item, root, tools), work)
        return [finding for findings in results for finding in findings]


def _place(rendered: Rendered, line: int | None, variant: Variant) -> str:
    """`file:line (variant)` of the source of rendered line `line`."""
    origin = rendered.origin(line) if line and line <= len(rendered.places) else None
    return f"{origin[0]}:{origin[1]} ({variant})" if origin else str(variant)


def _check_resources(variant: Variant, image: KernelImage, assembly: Assembly) -> Iterator[str]:
    """Shared memory counts as the front end counts it, which is what variants are chosen by."""
    if assembly.shared != image.shared_bytes:
        yield (f"{assembly.shared} bytes of static shared memory; variants.json says "
               f"{image.shared_bytes}")
    if assembly.spills:
        yield f"{assembly.spills} bytes of spills"
    if assembly.registers > variant.max_regs:
        yield f"{assembly.registers} registers; variants.toml allows {variant.max_regs}"


def _check_payload(
    variant: Variant, rendered: Rendered, assembly: Assembly, root: Path
) -> Iterator[tuple[int, str]]:
    """Each payload load became what its policy promises, and no `.nc` load was merged away.

    Line by line: the assembler may unroll a loop, but each load must be there, and as promised.
    """
    lines = rendered.text.splitlines()
    promised = {n: "CONSTANT" for n, line in enumerate(lines, start=1) if _NC_LOAD.match(line)}
    if variant.policy:
        include = Path(root) / f"ptx/policy/{variant.policy}.inc"
        opcode = _PAYLOAD.search(include.read_text(encoding="utf-8"))[1]
        payload = re.compile(_OPCODE + re.escape(opcode) + r"\s")
        loads = [n for n, line in enumerate(lines, start=1) if payload.match(line)]
        promised.update(dict.fromkeys(loads, variant.sass))
        if not loads:
            yield 0, f"no payload load ({opcode}), though the variant has a policy"
    for sass in assembly.sass:
        if sass.opcode.endswith("CONSTANT") and not _NC_LOAD.match(lines[(sass.line or 1) - 1]):
            yield sass.line or 0, f"{sass.opcode} in SASS from what is no .nc load"
    for number, spelling in promised.items():
        found = {s.opcode for s in assembly.sass if s.line == number and s.opcode.startswith("LDG")}
        if not found:
            yield number, f"load was merged away in SASS: {lines[number - 1].strip()}"
        elif not all(opcode == spelling or opcode.endswith(f".{spelling}") for opcode in found):
            yield number, f"load became {', '.join(sorted(found))}, not {spelling}"


def _check_polls(rendered: Rendered, assembly: Assembly) -> Iterator[tuple[int, str]]:
    """Each strong load that PTX repeats is repeated in SASS, by a branch of the same loop.

    The assembler may turn a loop's conditions round, so any branch that came from a line of the
    innermost PTX loop counts; a loop it deleted has none.
    """
    lines = rendered.text.splitlines()
    loops = _ptx_loops(lines)
    after = [_successors(i, assembly.sass) for i in range(len(assembly.sass))]
    before: list[list[int]] = [[] for _ in after]
    for i, successors in enumerate(after):
        for successor in successors:
            before[successor].append(i)
    for number, line in enumerate(lines, start=1):
        if not _STRONG_LOAD.match(line):
            continue
        around = [(first, last) for first, last in loops if first <= number <= last]
        if not around:
            continue
        first, last = min(around, key=lambda loop: loop[1] - loop[0])
        if not any(
            sass.line == number
            and "STRONG" in sass.opcode
            and _repeated(i, assembly.sass, after, before, first, last)
            for i, sass in enumerate(assembly.sass)
        ):
            yield number, f"strong load of a loop is not repeated in SASS: {line.strip()}"


def _check_waits(rendered: Rendered) -> Iterator[tuple[int, str]]:
    """A loop that begins by polling a word has an acquire of it, at system scope, in its scope.

    The poll itself may acquire, or a load behind the loop; a fence is not taken for either.
    """
    lines = rendered.text.splitlines()
    for first, _ in sorted(set(_ptx_loops(lines))):
        number = next(n for n in range(first + 1, len(lines) + 1)
                      if not lines[n - 1].lstrip().startswith(".loc"))
        poll = _POLL.match(lines[number - 1])
        if poll and not any(
            (match := _SYS_ACQUIRE.match(line)) and match[1] == poll[1]
            for line in _rest_of_scope(lines, number)
        ):
            yield number, f"polled, and never acquired: {lines[number - 1].strip()}"


def _rest_of_scope(lines: list[str], number: int) -> Iterator[str]:
    """The lines behind line `number`, to the end of the scope that it stands in."""
    depth = 0
    for line in lines[number:]:
        depth += (line.strip() == "{") - (line.strip() == "}")
        if depth < 0:
            return
        yield line


def _ptx_loops(lines: list[str]) -> list[tuple[int, int]]:
    """(line of the label, line of the branch) of each backward branch; labels are scoped."""
    scopes: list[dict[str, int]] = [{}]
    loops = []
    for number, line in enumerate(lines, start=1):
        if line.strip() == "{":
            scopes.append({})
        elif line.strip() == "}":
            scopes.pop()
        elif match := _PTX_LABEL.match(line):
            scopes[-1][match[1]] = number
        elif match := _BRANCH.match(line):
            # Only labels above are known here, so a branch that finds none goes forward.  A label
            # below may hide an outer one of the same name: a loop too many, and a stricter check.
            for scope in reversed(scopes):
                if match[1] in scope:
                    loops.append((scope[match[1]], number))
                    break
    return loops


def _repeated(
    load: int,
    sass: tuple[Sass, ...],
    after: list[list[int]],
    before: list[list[int]],
    first: int,
    last: int,
) -> bool:
    """Whether instruction `load` lies on a cycle with a branch from PTX lines first to last.

    after, before: of each instruction, those that may follow it, and those that it may follow.
    """
    return any(
        sass[i].opcode.startswith("BRA") and sass[i].line and first <= sass[i].line <= last
        for i in _reach(load, after) & _reach(load, before)
    )


def _successors(i: int, sass: tuple[Sass, ...]) -> list[int]:
    following = [i + 1] if sass[i].falls_through and i + 1 < len(sass) else []
    return [*following, *sass[i].targets]


def _reach(start: int, edges: list[list[int]]) -> set[int]:
    """Nodes on a path of at least one edge from `start`."""
    reached: set[int] = set()
    stack = list(edges[start])
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack.extend(edges[node])
    return reached
