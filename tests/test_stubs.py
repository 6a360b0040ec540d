# SPDX-License-Identifier: MIT
"""The stubs say what the code says: names, parameters in order, their kinds and defaults; and
docs/api.md has the signatures of the stubs.

A stub's private names exist for type checkers only.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import deepep_ptx

PACKAGE = Path(deepep_ptx.__file__).parent
STUBS = sorted(PACKAGE.rglob("*.pyi"))
KINDS = inspect.Parameter



class Missing:
    """What the code does not have, or has no default for."""

    def __repr__(self):
        return "missing"


MISSING = Missing()


# -- what stubs say ---------------------------------------------------------------------------

def module_of(stub):
    """Name of a stub's module below the package: "buffer", "arrays.device_array", ""."""
    parts = stub.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def load(module):
    return importlib.import_module(f"deepep_ptx.{module}" if module else "deepep_ptx")


def is_public(name):
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def name_of(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    if isinstance(node, ast.AnnAssign):
        return node.target.id
    return None


def by_name(body):
    """Public name -> its nodes: several for an overloaded function."""
    found = {}
    for node in body:
        name = name_of(node)
        if name is not None and is_public(name):
            found.setdefault(name, []).append(node)
    return found


def stub_of(module):
    path = PACKAGE / module.replace(".", "/")
    path = path / "__init__.pyi" if path.is_dir() else path.with_suffix(".pyi")
    return by_name(ast.parse(path.read_text()).body)


def decorators(node):
    return {ast.unparse(item).partition("(")[0] for item in node.decorator_list}


def stub_parameters(node):
    """[(name, kind, default)] of a function in a stub."""
    args = node.args
    placed = [*args.posonlyargs, *args.args]
    defaults = [MISSING] * (len(placed) - len(args.defaults)) + [
        ast.literal_eval(value) for value in args.defaults]
    kinds = ([KINDS.POSITIONAL_ONLY] * len(args.posonlyargs)
             + [KINDS.POSITIONAL_OR_KEYWORD] * len(args.args))
    found = [(arg.arg, kind, default)
             for arg, kind, default in zip(placed, kinds, defaults, strict=True)]
    if args.vararg:
        found.append((args.vararg.arg, KINDS.VAR_POSITIONAL, MISSING))
    for arg, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        default = MISSING if value is None else ast.literal_eval(value)
        found.append((arg.arg, KINDS.KEYWORD_ONLY, default))
    if args.kwarg:
        found.append((args.kwarg.arg, KINDS.VAR_KEYWORD, MISSING))
    return found


def code_parameters(function):
    return [(p.name, p.kind, MISSING if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()]


def written(parameters):
    """Parameters as one reads them; not by way of `inspect.Signature`, which checks their order."""
    made = []
    kinds = [kind for _, kind, _ in parameters]
    for index, (name, kind, default) in enumerate(parameters):
        if kind is KINDS.KEYWORD_ONLY and not {KINDS.VAR_POSITIONAL, kind} & set(kinds[:index]):
            made.append("*")
        made.append(str(KINDS(name, kind, **({} if default is MISSING else {"default": default}))))
    return f"({', '.join(made)})"


# -- what the code has ------------------------------------------------------------------------

def kind_of(value):
    """"class", "property", "static method", "class method", "function" or "value"."""
    for kind, types in {
        "class": type, "property": property, "static method": staticmethod,
        "class method": classmethod,
    }.items():
        if isinstance(value, types):
            return kind
    return "function" if callable(value) else "value"


def stub_kind_of(node):
    if isinstance(node, ast.ClassDef):
        return "class"
    if isinstance(node, ast.AnnAssign):
        return "value"
    if node.name == "__new__":
        return "static method"
    for decorator, kind in {
        "property": "property", "staticmethod": "static method", "classmethod": "class method",
    }.items():
        if decorator in decorators(node):
            return kind
    return "function"


def assigned_to_self(cls):
    """Public attributes that the methods of a class set."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
    return {node.attr for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name) and node.value.id == "self"
            and is_public(node.attr)}


def members_of(cls):
    """Name -> what a class has of it, itself or of a base of the package."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("deepep_ptx"):
            found |= vars(base)
    return found


# -- comparison -------------------------------------------------------------------------------

def compare_function(name, nodes, function):
    """What differs between a function and its stub, as lines."""
    want = code_parameters(function)
    lines = []
    given = set()               # parameters that some overload gives the right default
    for node in nodes:
        got = stub_parameters(node)
        same = [p[:2] for p in got] == [p[:2] for p in want]
        for (parameter, _, mine), (_, _, code) in zip(got, want, strict=False):
            right = mine is code or (type(mine) is type(code) and mine == code)
            if right:
                given.add(parameter)
            # An overload may ask for what has a default in the code.
            same &= right or (len(nodes) > 1 and mine is MISSING)
        if not same:
            lines.append(f"{name}:\n    stub {written(got)}\n    code {written(want)}")
    never = [parameter for parameter, _, _ in want if parameter not in given]
    if not lines and never:
        lines.append(f"{name}: no overload gives the default of {', '.join(never)}")
    return lines


def compare_dataclass(name, node, cls):
    """Fields and defaults."""
    got = [(field.target.id, KINDS.POSITIONAL_OR_KEYWORD,
            MISSING if field.value is None else ast.literal_eval(field.value))
           for field in node.body if isinstance(field, ast.AnnAssign)]
    want = code_parameters(cls)
    if got != want:
        return [f"{name}:\n    stub {written(got)}\n    code {written(want)}"]
    return []


def compare_class(name, node, cls):
    stub, code = by_name(node.body), members_of(cls)
    lines = []
    for member, nodes in stub.items():
        lines += compare(f"{name}.{member}", nodes, code.get(member, MISSING))
    for member, value in code.items():
        if not member.startswith("_") and member not in stub:
            lines.append(f"{name}.{member}: a {kind_of(value)} of the code without a stub")
    if "dataclass" in decorators(node):
        return lines + compare_dataclass(name, node, cls)
    if "__init__" in vars(cls) and "__init__" not in stub:
        lines.append(f"{name}.__init__: a function of the code without a stub")
    attributes = assigned_to_self(cls)
    for member, nodes in stub.items():
        if stub_kind_of(nodes[0]) == "value" and member not in attributes | set(code):
            lines.append(f"{name}.{member}: an attribute in the stub that no method sets")
    lines += [f"{name}.{member}: an attribute of the code without a stub"
              for member in sorted(attributes - set(stub))]
    return lines


def compare(name, nodes, value):
    kind = stub_kind_of(nodes[0])
    if value is MISSING:
        # compare_class looks for attributes of instances; a handle gets its own when it is made.
        in_instance = name.count(".") >= 2 and (kind == "value" or name.startswith("handle."))
        return [] if in_instance else [f"{name}: a {kind} in the stub, not in the code"]
    if kind_of(value) != kind and kind != "value":
        return [f"{name}: a {kind} in the stub, a {kind_of(value)} in the code"]
    if kind == "class":
        return compare_class(name, nodes[0], value)
    if kind in ("function", "static method", "class method"):
        return compare_function(name, nodes, getattr(value, "__func__", value))
    return []


# The package's own stub is compared below; one that only passes names on says nothing.
MODULES = [module for module in map(module_of, STUBS) if module and stub_of(module)]


@pytest.mark.parametrize("module", MODULES)
def test_stub_is_what_the_code_says(module):
    code, stub = load(module), stub_of(module)
    lines = []
    for name, nodes in stub.items():
        lines += compare(f"{module}.{name}", nodes, getattr(code, name, MISSING))
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize("module", [m for m in MODULES if "." not in m])
def test_public_names_have_a_stub(module):
    code = load(module)
    public = {name for name, value in vars(code).items()
              if not name.startswith("_") and getattr(value, "__module__", None) == code.__name__}
    public |= set(getattr(code, "__all__", ()))
    without = sorted(public - set(stub_of(module)))
    assert not without, f"deepep_ptx/{module}.pyi: has no {', '.join(without)}"


def test_package_exports_the_same():
    body = ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    exported = {}
    for node in body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                exported[alias.asname] = (node.module, alias.name)
    assert set(exported) == set(deepep_ptx.__all__)
    for name, (module, original) in exported.items():
        value = load(name) if module is None else getattr(load(module), original)
        assert getattr(deepep_ptx, name) is value, name


# -- docs/api.md ------------------------------------------------------------------------------

API = PACKAGE.parent / "docs/api.md"


def documented():
    """[(dotted name, its parameters as text, or None)] of the blocks of signatures."""
    found = []
    for block in re.findall(r"^```python\n(.*?)^```", API.read_text(), re.DOTALL | re.MULTILINE):
        for entry in re.split(r"\n(?! )", block.strip()):
            name, _, parameters = " ".join(entry.split()).partition("(")
            found.append((name, parameters[:-1] if parameters else None))
    return found


def stub_nodes(dotted):
    """Nodes of a name as docs/api.md writes it: of the package, or with its module in front."""
    first, _, rest = dotted.partition(".")
    if first in deepep_ptx.__all__ and first != "reference":
        module, path = getattr(deepep_ptx, first).__module__.partition(".")[2], dotted
    else:
        module, path = first, rest
    body, nodes = stub_of(module), []
    for part in path.split("."):
        assert part in body, f"docs/api.md: {dotted} is in no stub"
        nodes = body[part]
        body = by_name(nodes[0].body) if isinstance(nodes[0], ast.ClassDef) else {}
    return nodes


def signature_of(nodes):
    """Parameters as a caller writes them; None for what is not called."""
    node = nodes[0]
    if isinstance(node, ast.ClassDef):
        members = by_name(node.body)
        if "__init__" not in members:
            return [(field.target.id, KINDS.POSITIONAL_OR_KEYWORD, ast.literal_eval(field.value))
                    for field in node.body if isinstance(field, ast.AnnAssign)]
        node = members["__init__"][0]
    kind = stub_kind_of(node)
    if kind in ("property", "value"):
        return None
    parameters = stub_parameters(node)
    return parameters[1:] if parameters and parameters[0][0] == "self" else parameters


@pytest.mark.skipif(not API.exists(), reason="the package is not in its tree")
def test_api_reference_has_the_signatures():
    for dotted, text in documented():
        want = signature_of(stub_nodes(dotted))
        want = None if want is None else written(want)[1:-1]
        assert text == want, f"docs/api.md: {dotted}\n    docs {text}\n    stub {want}"


@pytest.mark.skipif(not API.exists(), reason="the package is not in its tree")
def test_api_reference_has_every_name():
    words = set(re.findall(r"\w+", API.read_text()))
    names = {f"{module}.{name}" for module in MODULES for name in stub_of(module)
             if not name.isupper()}
    for module in MODULES:
        for name, nodes in stub_of(module).items():
            if isinstance(nodes[0], ast.ClassDef):
                names |= {f"{module}.{name}.{member}" for member in by_name(nodes[0].body)
                          if not member.startswith("_")}
    without = sorted(name for name in names if name.rpartition(".")[2] not in words)
    assert not without, f"docs/api.md: has no {', '.join(without)}"
