# SPDX-License-Identifier: MIT
"""Who knows whom: no circles of files, and nothing below that includes what is above."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
C_FILES = [path for path in sorted((ROOT / "cysrc").rglob("*.[ch]"))
           if path.parent.name != "deepep_ptx"]        # there: what Cython writes
INCLUDED_FROM = ("cysrc", "cysrc/gen", "deepep_ptx/include")

# Folders of cysrc, and those that they may include besides.
BELOW = {
    "core": {"gen", "include"},
    "cuda": {"core", "gen", "include"},
    "emu/device": {"gen"},
    "emu/host": {"core", "emu/device", "include"},
    "lending": set(),
}

# Circles that are left: files that call each other, modules that import each other.  One that is
# gone is taken out; none is added.
CALL_CIRCLES = [
    {"core/buffer.c", "core/slots.c"},
]
MODULE_CIRCLES = []


def circles(leans_on):
    """The strongly connected sets of more than one node, and nodes that lean on themselves."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(leans_on.get(node, ())):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            at = stack.index(node)
            ring = set(stack[at:])
            del stack[at:]
            if len(ring) > 1 or node in leans_on.get(node, ()):
                found.append(ring)

    for node in sorted(leans_on):
        if node not in order:
            visit(node)
    return found


@pytest.mark.parametrize(("leans_on", "want"), [
    ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
    ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, [{"b", "c"}]),
    ({"a": {"a"}}, [{"a"}]),
    ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e", "a"}, "e": {"d"}},
     [{"a", "b", "c"}, {"d", "e"}]),
])
def test_circles_are_found(leans_on, want):
    assert sorted(map(sorted, circles(leans_on))) == sorted(map(sorted, want))


# -- C ---------------------------------------------------------------------------------------------


def code_of(path):
    """The text without comments and strings."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)


def name_of(path):
    """Its path from the folder that it is included from."""
    path = path.resolve()
    inside = ROOT / "deepep_ptx/include"
    if path.is_relative_to(inside):
        return f"include/{path.relative_to(inside).as_posix()}"
    return path.relative_to(ROOT / "cysrc").as_posix()


def folder_of(name):
    return "include" if name.startswith("include/") else name.rpartition("/")[0]


def included(path):
    """Names of the files of the tree that `path` includes."""
    for name in re.findall(r'^#include "(.*)"', path.read_text(), re.M):
        places = [path.parent, *(ROOT / folder for folder in INCLUDED_FROM)]
        found = [place / name for place in places if (place / name).exists()]
        assert found, f"{path}: there is no {name}"
        yield name_of(found[0])


def functions_of(code):
    """Names of the functions that a C file defines for others."""
    heads = re.findall(r"^(?!static|typedef)([A-Za-z_][^;{}()=#]*?)\b(\w+)\([^;{}]*\)\s*\n\{",
                       code, re.M)
    return {name for before, name in heads if not {"static", "EMU_INLINE"} & {*before.split()}}


def calls():
    """C file -> C files whose functions it names."""
    codes = {name_of(path): code_of(path) for path in C_FILES if path.suffix == ".c"}
    defined_in = {}
    for file, code in codes.items():
        for function in functions_of(code):
            assert function not in defined_in, f"{function}: in {file} and {defined_in[function]}"
            defined_in[function] = file
    return {file: {defined_in[word] for word in set(re.findall(r"(?<![.>\w])\w+", code))
                   if word in defined_in} - {file}
            for file, code in codes.items()}


def test_functions_are_found():
    assert {"one", "two"} == functions_of(
        "int one(int a,\n        int b)\n{\n}\nstatic int hidden(void)\n{\n}\n"
        "struct x *two(void)\n{\n}\nint declared(void);\n")
    called = calls()
    assert "emu/device/fault.c" in called["emu/device/access.c"]
    assert "emu/host/failure.c" in called["emu/host/world.c"]           # a function's address
    assert "emu/device/access.c" not in called["emu/device/fault.c"]


def test_no_circles_of_calls():
    assert sorted(map(sorted, circles(calls()))) == sorted(map(sorted, CALL_CIRCLES))


def test_no_circles_of_includes():
    assert circles({name_of(path): set(included(path)) for path in C_FILES}) == []


def test_c_files_include_what_is_below_them():
    wrong = [f"{name_of(path)} includes {name}"
             for path in C_FILES if path.parent.name != "gen" for name in included(path)
             if folder_of(name) not in {folder_of(name_of(path)), *BELOW[folder_of(name_of(path))]}]
    assert not wrong


# -- Python and Cython -----------------------------------------------------------------------------


def modules():
    """Dotted name -> its file, of the package and of its extension modules."""
    found = {}
    for path in sorted((ROOT / "deepep_ptx").rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        found[name.removesuffix(".__init__")] = path
    for path in sorted((ROOT / "cysrc/deepep_ptx").glob("*.pyx")):
        found[f"deepep_ptx.{path.stem}"] = path
    return found


def imports_of_python(name, path):
    """(module, names taken from it) of the imports that loading the module executes."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    waiting = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) + 1 - node.level]
            module = ".".join([*base, node.module or ""]).rstrip(".") if node.level else node.module
            yield module, [alias.name for alias in node.names]
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            if "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", ast.Pass())):
                waiting += list(ast.iter_child_nodes(node))
        elif isinstance(node, ast.ExceptHandler):
            waiting += node.body


def imports_of_cython(path):
    text = "".join(p.read_text() for p in (path, path.with_suffix(".pxd")) if p.exists())
    text = re.sub(r"\(([^()]*)\)", lambda m: m[1].replace("\n", " "), text)
    for module, names in re.findall(r"^from (\S+) c?import (.+)$", text, re.M):
        yield module, [part.split()[0] for part in names.split(",") if part.strip()]
    for names in re.findall(r"^c?import (.+)$", text, re.M):
        yield from ((part.split()[0], []) for part in names.split(",") if part.strip())


def module_graph():
    """module -> modules of the package that it imports when it is loaded."""
    known, leans_on = modules(), {}
    for name, path in known.items():
        others = leans_on.setdefault(name, set())
        taken = imports_of_python(name, path) if path.suffix == ".py" else imports_of_cython(path)
        for module, names in taken:
            inner = {f"{module}.{part}" for part in names} & known.keys()
            others |= inner
            if module in known and len(inner) < max(1, len(names)):
                others.add(module)
        others.discard(name)
    return leans_on


def test_imports_are_found():
    leans_on = module_graph()
    assert "deepep_ptx._emu" in leans_on["deepep_ptx.runtime"]
    assert "deepep_ptx.checks" in leans_on["deepep_ptx._emu"]
    assert "deepep_ptx._executor" in leans_on["deepep_ptx._emu"]        # a cimport of its .pxd
    assert "deepep_ptx.checks" in leans_on["deepep_ptx.buffer"]


def test_no_circles_of_modules():
    found = circles(module_graph())
    assert sorted(map(sorted, found)) == sorted(map(sorted, MODULE_CIRCLES))
