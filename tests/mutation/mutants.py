"""Small changes to a module, each of which some test should notice.

A change replaces one piece of the source by another and keeps the number of lines. Docstrings, annotations, records of
methods, and what an error says are left alone: a change there is no change of behaviour.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

BINARY = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("/",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)),
    ast.Mod: ("%", ("*",)),
    ast.Pow: ("**", ("*",)),
    ast.MatMult: ("@", ("*",)),
    ast.BitAnd: ("&", ("|",)),
    ast.BitOr: ("|", ("&",)),
    ast.BitXor: ("^", ("|",)),
    ast.LShift: ("<<", (">>",)),
    ast.RShift: (">>", ("<<",)),
}
"""Operators: how each is written, and what takes its place."""

COMPARISON = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
"""The first replacement moves the boundary where there is one, the last negates."""

OTHER_NAMES = dict(
    pair
    for one, two in (
        ("max", "min"),
        ("maximum", "minimum"),
        ("nanmax", "nanmin"),
        ("argmax", "argmin"),
        ("any", "all"),
        ("zeros", "ones"),
        ("zeros_like", "ones_like"),
        ("floor", "ceil"),
        ("sum", "mean"),
        ("sin", "cos"),
        ("sinh", "cosh"),
        ("arcsinh", "arctan"),
        ("exp", "expm1"),
        ("log", "log1p"),
        ("isnan", "isinf"),
    )
    for pair in ((one, two), (two, one))
)
"""Functions that are taken for each other, by their last name."""

UNWRAPPED = {
    "abs",
    "sqrt",
    "exp",
    "expm1",
    "log",
    "log1p",
    "tanh",
    "sinh",
    "cosh",
    "arcsinh",
    "square",
    "copy",
}
"""Functions of one argument that are replaced by their argument."""

SYMMETRIC = {
    "max",
    "min",
    "maximum",
    "minimum",
    "add",
    "multiply",
    "hypot",
    "dot",
    "isclose",
    "logaddexp",
    "isinstance",
    "range",
}
"""Calls whose first two arguments are not swapped: the swap changes nothing, or fails by itself."""

SAME_RESULT = (None, "strict", "copy")
"""Keywords that are left alone: zip's strict guards against a mistake in the line itself, copy saves time."""

SILENT = {"fail", "fail_type", "TypeVar", "cast", "Method", "warn", "getLogger"}
"""Calls that are skipped with all that is in them."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    function: str
    """Its qualified name; empty at the module's top level."""

    place: str
    """``body``, ``default`` or ``top``: what has to be made anew."""

    first_line: int
    last_line: int
    """The statement whose tests are asked."""

    start: int
    stop: int
    """The bytes that are replaced."""

    text: str
    label: str
    """What a reader sees and the list of explained mutants holds: the line with ``[old -> new]`` in it."""

    def source(self, original: bytes) -> bytes:
        """Return the changed module, with as many lines as before."""
        lines = original[self.start : self.stop].count(b"\n")
        missing = lines - self.text.count("\n")
        end = original.find(b"\n", self.stop)
        end = len(original) if end < 0 else end
        # The lines that went are made up for after the end of the line.
        rest = original[self.stop : end] + b"\n" * missing + original[end:]
        return original[: self.start] + self.text.encode() + rest


def mutants_of(module: str, source: bytes) -> list[Mutant]:
    """Return all changes of a module, in the order of its lines, without two of the same effect on the text."""
    finder = _Finder(module, source)
    finder.visit_block(finder.tree.body, "", "top")
    found, seen, labels = [], set[bytes](), dict[tuple[str, str], int]()
    for change in sorted(finder.found, key=lambda change: (change.start, change.stop)):
        changed = change.source(source)
        if changed in seen or not _parses(changed):
            continue
        seen.add(changed)
        number = labels[change.function, change.label] = labels.get((change.function, change.label), 0) + 1
        if number > 1:
            change = Mutant(**{**change.__dict__, "label": f"{change.label} (#{number})"})
        found.append(change)
    return found


def _parses(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Finder:
    """Walks a module and collects changes."""

    def __init__(self, module: str, source: bytes) -> None:
        self.module, self.bytes = module, source
        self.tree = ast.parse(source)
        self.found: list[Mutant] = []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.function, self.place, self.lines = "", "top", (1, 1)

    # Positions and edits

    def span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword | ast.arg)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, stop = self.span(node)
        return self.bytes[start:stop].decode()

    def change(self, start: int, stop: int, text: str) -> None:
        old = self.bytes[start:stop].decode()
        if old == text:
            return
        head = self.bytes.rfind(b"\n", 0, start) + 1
        end = self.bytes.find(b"\n", stop)
        end = len(self.bytes) if end < 0 else end
        before, after = self.bytes[head:start].decode(), self.bytes[stop:end].decode()
        shown = f"{before}[{old} -> {text or 'nothing'}]{after.split('  #')[0]}"
        label = " ".join(shown.split())
        self.found.append(Mutant(self.module, self.function, self.place, *self.lines, start, stop, text, label))

    def replace(self, node: ast.AST, text: str) -> None:
        self.change(*self.span(node), text)

    def replace_between(self, left: ast.AST, right: ast.AST, symbol: str, texts: Iterable[str]) -> None:
        """Replace the operator that stands between two operands."""
        start, stop = self.span(left)[1], self.span(right)[0]
        between = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.bytes[start:stop])
        pattern = r"\s+".join(map(re.escape, symbol.split()))
        if match := re.search(pattern.encode(), between):
            for text in texts:
                self.change(start + match.start(), start + match.end(), text)

    # Statements

    def visit_block(self, body: list[ast.stmt], function: str, place: str, bound: set[str] | None = None) -> None:
        bound = set() if bound is None else bound
        for statement in body:
            if _is_docstring(statement):
                continue
            self.function, self.place = function, place
            self.visit_statement(statement, bound)

    def visit_statement(self, node: ast.stmt, bound: set[str]) -> None:
        outer = self.function, self.place
        self.lines = (node.lineno, node.end_lineno or node.lineno)
        if isinstance(node, ast.FunctionDef):
            self.visit_function(node, bound)
        elif isinstance(node, ast.ClassDef):
            name = f"{outer[0]}.{node.name}".lstrip(".")
            self.visit_block(node.body, name, "top")
        elif isinstance(node, ast.If | ast.While):
            if "TYPE_CHECKING" in ast.dump(node.test):
                return
            self.lines = (node.test.lineno, node.test.end_lineno or node.lineno)
            for value in ("True", "False") if isinstance(node, ast.If) else ("False",):
                self.replace(node.test, value)
            self.visit(node.test, condition=True)
            self.visit_block(node.body, *outer, bound)
            self.visit_block(node.orelse, *outer, bound)
        elif isinstance(node, ast.For):
            self.lines = (node.lineno, node.iter.end_lineno or node.lineno)
            self.visit(node.iter)
            bound |= _names(node.target)
            self.visit_block(node.body, *outer, bound)
            self.visit_block(node.orelse, *outer, bound)
        elif isinstance(node, ast.With):
            self.lines = (node.lineno, node.items[-1].context_expr.end_lineno or node.lineno)
            for item in node.items:
                # What errstate silences would be a warning, which the tests take for an error; the rest is no choice.
                self.visit(item.context_expr)
                if item.optional_vars:
                    bound |= _names(item.optional_vars)
            self.visit_block(node.body, *outer, bound)
        elif isinstance(node, ast.Try):
            for block in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                self.visit_block(block, *outer, bound)
        elif isinstance(node, ast.Expr):
            if not isinstance(node.value, ast.Yield | ast.YieldFrom) and not _is_silent(node.value):
                self.replace(node, "pass")
            self.visit(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            self.visit_assignment(node, bound)
        elif isinstance(node, ast.Return) and node.value is not None:
            if isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
                for part in node.value.elts:
                    if not isinstance(part, ast.Starred | ast.Constant | ast.Lambda) and not self.text(part).endswith(
                        "back"
                    ):
                        self.replace(part, f"0 * ({self.text(part)})")
            self.visit(node.value)
        elif isinstance(node, ast.Continue | ast.Break):
            self.replace(node, "pass")
        elif isinstance(node, ast.Assert):
            self.visit(node.test)

    def visit_function(self, node: ast.FunctionDef, bound: set[str]) -> None:
        if any("overload" in ast.dump(decorator) for decorator in node.decorator_list):
            return
        nested = self.place != "top"
        name = self.function if nested else f"{self.function}.{node.name}".lstrip(".")
        self.function = name
        self.place = "body" if nested else "default"
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        bound.add(node.name)
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        self.visit_block(node.body, name, "body", {argument.arg for argument in arguments if argument})

    def visit_assignment(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign, bound: set[str]) -> None:
        if node.value is None:
            return
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = set[str]().union(*map(_names, targets))
        if self.place == "top":
            # Types, records and lists of names are no behaviour.
            if _is_silent(node.value) or "__all__" in names or _is_type(node):
                return
        elif isinstance(node, ast.AugAssign) or not names or names <= bound:
            self.replace(node, "pass")
        bound |= names
        if isinstance(node, ast.AugAssign):
            symbol, texts = BINARY[type(node.op)]
            self.replace_between(node.target, node.value, f"{symbol}=", [f"{text}=" for text in texts])
        for target in targets:
            self.visit(target)
        if isinstance(node.value, ast.Tuple) and any(isinstance(target, ast.Tuple) for target in targets):
            for part in node.value.elts:
                self.visit(part)
            return
        self.visit(node.value)

    # Expressions

    def visit(self, node: ast.AST, condition: bool = False) -> None:
        match node:
            case ast.Call() if _is_silent(node):
                return
            case ast.Call():
                self.visit_call(node)
                return
            case ast.JoinedStr():
                return
            case ast.Constant():
                self.visit_constant(node)
            case ast.BinOp():
                self.replace_between(node.left, node.right, *BINARY[type(node.op)])
                if isinstance(node.op, ast.Add | ast.Sub):
                    self.replace(node, self.text(node.left))
            case ast.Compare():
                for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                    symbol, texts = COMPARISON[type(operator)]
                    # Conditions are replaced by their values, which is more than their negation.
                    self.replace_between(left, right, symbol, texts[:-1] if condition else texts)
                    if isinstance(right, ast.Constant) and isinstance(right.value, str):
                        self.replace(right, '"?"')
            case ast.BoolOp():
                symbol, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in pairwise(node.values):
                    self.replace_between(left, right, symbol, [other])
                for value in node.values:
                    self.visit(value, condition)
                return
            case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not()):
                self.replace(node, self.text(node.operand))
                if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
                    self.replace(node.operand, str(node.operand.value + (node.operand.value or 1)))  # type: ignore[operator]
                    return
            case ast.IfExp():
                self.replace(node.test, "True")
                self.replace(node.test, "False")
                self.visit(node.test, condition=True)
                self.visit(node.body)
                self.visit(node.orelse)
                return
            case ast.comprehension():
                for test in node.ifs:
                    self.replace(test, "True")
        for child in _children(node):
            self.visit(child)

    def visit_constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self.replace(node, str(not node.value))
            case int():
                self.replace(node, str(node.value + 1))
                if node.value == 1:
                    self.replace(node, "0")
            case float():
                self.replace(node, repr(2 * node.value) if node.value else "1.0")
                if node.value and node.value < 1e-2:
                    self.replace(node, "0.0")

    def visit_call(self, node: ast.Call) -> None:
        owner = node.func
        name = _last_name(owner)
        if name in OTHER_NAMES and isinstance(owner, ast.Attribute):
            stop = self.span(owner)[1]
            self.change(stop - len(name), stop, OTHER_NAMES[name])
        if name in UNWRAPPED:
            if len(node.args) == 1:
                self.replace(node, f"({self.text(node.args[0])})")
            elif not node.args and isinstance(owner, ast.Attribute):
                self.replace(node, self.text(owner.value))
        positional = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
        checks = isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "_checks"
        if len(positional) == len(node.args) >= 2 and name not in SYMMETRIC and not checks:
            first, second = positional[:2]
            if not any(
                isinstance(argument, ast.Constant) and isinstance(argument.value, str) for argument in (first, second)
            ):
                between = self.bytes[self.span(first)[1] : self.span(second)[0]].decode()
                self.change(self.span(first)[0], self.span(second)[1], self.text(second) + between + self.text(first))
        arguments: list[ast.AST] = [*node.args, *node.keywords]
        for keyword in node.keywords:
            if keyword.arg in SAME_RESULT:
                continue
            start, stop = self.span(keyword)
            later = re.match(rb"\s*,\s*", self.bytes[stop:])
            if arguments[-1] is not keyword and later:
                self.change(start, stop + later.end(), "")
            elif len(arguments) > 1:
                before = max(self.span(other)[1] for other in arguments if self.span(other)[1] <= start)
                self.change(before, stop, self.bytes[before:start].decode().split(",")[0])
            else:
                self.change(start, stop, "")
        self.visit(owner)
        for argument in node.args:
            # Any negative length of reshape is the one that is left open.
            if not (name == "reshape" and isinstance(argument, ast.UnaryOp)):
                self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg not in SAME_RESULT:
                self.visit(keyword.value)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(
            child, ast.operator | ast.unaryop | ast.cmpop | ast.boolop | ast.expr_context | ast.arguments
        ):
            yield child


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str | type(...))
    )


def _is_silent(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) in SILENT


def _is_type(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias"
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _names(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
