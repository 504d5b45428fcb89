"""Every test can fail: it asserts something itself, or through a helper that it calls."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import pytest

from tests.support.server import ROOT

TESTS = ROOT / "tests"
HELPER_LEVELS = 2
"""How far a helper may pass the assertion on to another helper."""

PYTEST_ASSERTIONS = {"raises", "RaisesGroup", "warns", "fail"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@attrs.frozen
class Module:
    """A module's functions by name, methods included, and those of tests/support that it imports from."""

    functions: dict[str, list[Function]]
    tables: dict[str, list[str]]
    """Module-level values by name, with the names that they mention: a test may take its check from such a table."""
    aliases: dict[str, str]
    imported: tuple["Module", ...]

    def find(self, name: str) -> "Iterator[tuple[Module, Function]]":
        """Find what a call of that name may reach, with the module that it is in."""
        for function in self.functions.get(name, []):
            yield self, function
        for module in self.imported:
            for function in module.functions.get(self.aliases.get(name, name), []):
                yield module, function


def parse(source: str) -> Module:
    """Read a module and the modules of tests/support that it imports."""
    tree = ast.parse(source)
    functions: dict[str, list[Function]] = {}
    aliases: dict[str, str] = {}
    imported: list[Module] = []
    for node in ast.walk(tree):
        if isinstance(node, Function):
            functions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.support"):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = [ROOT / f"{name.replace('.', '/')}.py" for name in names]
            imported += [parse_file(file) for file in files if file.is_file()]
    tables = {
        target.id: [name.id for name in ast.walk(node) if isinstance(name, ast.Name)]
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return Module(functions, tables, aliases, tuple(imported))


@cache
def parse_file(path: Path) -> Module:
    return parse(path.read_text("utf-8"))


def asserts(module: Module, function: Function, levels: int = HELPER_LEVELS) -> bool:
    """Whether a function asserts something: in its own lines, or in those of helpers that it calls."""
    nodes = list(ast.walk(function))
    return any(map(_is_assertion, nodes)) or (
        levels > 0
        and any(
            _call_asserts(module, node, levels - 1)
            for node in nodes
            if isinstance(node, ast.Call) and _called(node) != function.name
        )
    )


def _call_asserts(module: Module, node: ast.Call, levels: int) -> bool:
    match node.func:
        case ast.Subscript(value=ast.Name(id=table)):
            checks = [function for name in module.tables.get(table, []) for function in module.functions.get(name, [])]
            return bool(checks) and all(asserts(module, check, levels) for check in checks)
    passed = [argument.id for argument in node.args if isinstance(argument, ast.Name)]
    return any(
        asserts(found, helper, levels) for name in (_called(node), *passed) for found, helper in module.find(name)
    )


def _is_assertion(node: ast.AST) -> bool:
    match node:
        case ast.Assert(test=ast.Constant()):
            return False
        case ast.Assert() | ast.Raise(exc=ast.Call(func=ast.Name(id="AssertionError"))):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="pytest"), attr=name)):
            return name in PYTEST_ASSERTIONS
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="np"), attr="testing"))):
            return True
    return False


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def silent_tests(module: Module) -> list[str]:
    """Return the names of a module's tests that assert nothing."""
    return [
        name
        for name, functions in module.functions.items()
        if name.startswith("test_")
        for function in functions
        if not asserts(module, function)
    ]


# The packages of tests/clients are installed below it.
OWN = (path for path in TESTS.rglob("test_*.py") if ".venv" not in path.parts)
FILES = sorted({*OWN, TESTS / "support" / "engine_contract.py"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_test_asserts_something(path: Path) -> None:
    assert silent_tests(parse_file(path)) == []


def test_helper_that_asserts_counts_and_one_that_does_not_is_found() -> None:
    source = """
from tests.support.api_jobs import SMALL, submit as send

def check(): assert SMALL
def look(): print(SMALL)
CHECKS = {1: check}
MIXED = {1: check, 2: look}
def pass_on(): check()

def test_itself(): assert SMALL
def test_through_a_helper(): check()
def test_through_two(): pass_on()
def test_passed_on(): run(check)
def test_from_a_table(): CHECKS[1]()
def test_through_support(): send(None)
def test_with_raises():
    with pytest.raises(OSError): look()
def test_that_only_looks(): look()
def test_that_may_only_look(): MIXED[1]()
def test_of_a_constant(): assert True
class TestClass:
    async def test_method(self): SMALL
"""
    assert silent_tests(parse(source)) == [
        "test_that_only_looks",
        "test_that_may_only_look",
        "test_of_a_constant",
        "test_method",
    ]
