"""Every regular expression of the package takes linear time: texts of strangers are matched by them."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache

import attrs
import pytest

from tests.support.pattern_cost import why_not_linear
from tests.support.server import ROOT

PACKAGE = ROOT / "mflux_api"
ANCHORED = {"match", "fullmatch"}
SEARCHING = {"search", "sub", "subn", "findall", "finditer", "split"}
COMPUTED: dict[str, str | bytes] = {
    "engine/weights/parameters.py": r"layers\.(?P<layer>\d+)\.blocks\.(?P<block>\d+)\.weight",
    "http/form.py": rb"\r\n--boundary(?:--|[ \t]{0,99}\r\n)",
}
"""What the patterns look like that are put together from parts of ours, by the module that does it."""


@attrs.frozen
class Use:
    """A pattern, and whether it is searched for."""

    module: str
    line: int
    pattern: str | bytes
    flags: int
    searches: bool


@cache
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


@cache
def methods() -> dict[str, set[str]]:
    """The methods that are called of each name, in the whole package."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in trees().values():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr=method):
                    found[name].add(method)
    return found


def uses() -> Iterator[Use]:
    for module, tree in trees().items():
        names, values = dict[int, str](), dict[str, ast.expr]()
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    names[id(node.value)] = name
                    if node.value is not None:
                        values[name] = node.value
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=function)) if function != "escape":
                    # One without a name is taken to be searched for.
                    called = {function} if function != "compile" else methods().get(names.get(id(node), ""), SEARCHING)
                    if module in COMPUTED and isinstance(node.args[0], ast.Call | ast.BinOp):
                        yield Use(module, node.lineno, COMPUTED[module], 0, searches=False)
                        continue
                    flags = sum(
                        getattr(re, flag.attr)
                        for part in node.args[1:]
                        for flag in ast.walk(part)
                        if isinstance(flag, ast.Attribute)
                        and isinstance(flag.value, ast.Name)
                        and flag.value.id == "re"
                    )
                    yield Use(
                        module, node.lineno, text_of(node.args[0], values), flags, searches=bool(called & SEARCHING)
                    )


def text_of(node: ast.expr, constants: Mapping[str, ast.expr]) -> str | bytes:
    """The text of a pattern; a number stands for what is put into it."""
    match node:
        case ast.Constant(value=str() | bytes() as value):
            return value
        case ast.Name(id=name) if name in constants:
            return text_of(constants[name], constants)
        case ast.JoinedStr(values=values):
            return "".join(str(text_of(value, constants)) for value in values)
        case ast.FormattedValue():
            return "9"
        case ast.BinOp(left=left, right=right):
            return str(text_of(left, constants)) + str(text_of(right, constants))
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr="escape")):
            return "x"
    raise AssertionError(f"a pattern that is put together in line {node.lineno}: add it to COMPUTED")


USES = sorted(uses(), key=lambda use: (use.module, use.line))


@pytest.mark.parametrize("use", USES, ids=[f"{use.module}:{use.line}" for use in USES])
def test_pattern_takes_linear_time(use: Use) -> None:
    assert why_not_linear(use.pattern, use.flags, searches=use.searches) is None, f"line {use.line}: {use.pattern!r}"


def test_patterns_are_made_by_re_alone() -> None:
    """Where this test looks for them."""
    imports = re.compile(r"from re import|import re as|import regex|sre_compile")
    assert [module for module in trees() if imports.search((PACKAGE / module).read_text("utf-8"))] == []
    assert len(USES) > 20


@pytest.mark.parametrize(
    ("pattern", "searches"),
    [
        (r"[ \t]*<lora:([^<>]*)>", True),
        (r"(a+)+b", False),
        (r"(?:a|b*)*c", False),
        (r"\s*,\s*;", True),
        (r".*a.*b", False),
        (r"\d+x\d*\d+y", False),
        (r"a*?b", True),
        (r" - at `.*`$", True),
    ],
)
def test_pattern_that_is_not_linear_is_seen(pattern: str, searches: bool) -> None:
    assert why_not_linear(pattern, searches=searches) is not None


@pytest.mark.parametrize(
    ("pattern", "searches"),
    [(r"<lora:([^<>]*)>", True), (r"\d+", True), (r"[a-z]+:[0-9]+", False), (r"(?<!\r)\n", True), (r".*", True)],
)
def test_pattern_that_is_linear_passes(pattern: str, searches: bool) -> None:
    assert why_not_linear(pattern, searches=searches) is None
