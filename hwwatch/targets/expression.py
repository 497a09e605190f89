"""`locate`: the place that an expression names, never a copy of its value."""

from __future__ import annotations

import ast
import builtins
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from hwwatch.errors import HwwatchError, TargetError
from hwwatch.targets import cdata, places, tables
from hwwatch.targets.functions import symbol_target
from hwwatch.targets.memory import reason
from hwwatch.targets.model import Target
from hwwatch.targets.objects import target_of

_REFUSED = {
    ast.NamedExpr: "assigns (:=)",
    ast.Lambda: "makes a function",
    ast.Await: "awaits",
    ast.Yield: "yields",
    ast.YieldFrom: "yields",
}
# library!symbol, with nothing before the "!" that an expression would have
_SYMBOL = re.compile(r"[^\[\]()\"'\s]+!(?!=).+")
# What makes a new object: no place to start from
_COMPUTED = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# What the last step may be
_PLACES = (ast.Name, ast.Constant, ast.Attribute, ast.Subscript)
_KEY = "__hwwatch_key__"


class _Key:
    # Lets Python itself build the key of a subscript, slices and tuples included.
    def __getitem__(self, key: Any) -> Any:
        return key


@dataclass
class _Scope:
    # One evaluation: the names, and the objects met on the way to the place.
    names: dict[str, Any]
    chain: list[Any] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


def locate(expression: str, namespace: Mapping[str, Any] | None = None, *, name: str | None = None) -> Target:
    """Find the place that an expression names.

    Parameters
    ----------
    expression : str
        A name, an element, a slice, an attribute or field, chained at will: ``a[3]``, ``a[2:6]``,
        ``m[1, j + 1]``, ``s.items[2].x``, ``p.contents.x``, ``rec["x"][3]``, ``df["x"].iloc[3]``,
        ``libc.strlen``; or a function's symbol, ``libm.so.6!cos``. The last step names the place;
        all before it is evaluated, each part once.
    namespace : mapping, optional
        Where names are looked up; else the caller's locals, then its globals, then builtins.
    name : str, optional
        The target's name; else the expression as Python writes it.

    Returns
    -------
    Target
        The index of an element counts in the object before the last brackets: ``m[1, 2]`` has
        the element ``(1, 2)`` of ``m``, ``m[1][2]`` the element ``(2,)`` of ``m[1]``. A field's
        element is its name. Single values of a 0-d array or ctypes scalar have None.

    Raises
    ------
    TargetError
        Syntax, unknown name or field, index out of range, an index that copies (lists, masks), a
        Python object that holds no values; or whatever evaluating a part raised, as the cause.

    Notes
    -----
    A name alone stands for its object: a pointer for what it points at, while a pointer that is a
    field or element (``s.next``) is watched itself.
    """
    if not isinstance(expression, str):
        raise TargetError(
            f"locate takes an expression as text, not a {type(expression).__name__}.",
            hint='Write `hwwatch.locate("a[3]")`, or pass the object to `hwwatch.watch`.',
        )
    if namespace is None:
        frame = sys._getframe(1)
        namespace = {**frame.f_globals, **frame.f_locals}
    text = expression.strip()
    if _SYMBOL.fullmatch(text):
        return symbol_target(text, name=name)
    node = _parse(text)
    scope = _Scope({"__builtins__": builtins, **namespace, _KEY: _Key()})
    target = _target(node, ast.unparse(node), scope)
    note = target.note
    if not note and any(map(tables.is_pandas, scope.chain)):
        note = tables.NOTE
    if scope.calls:
        called = f"{', '.join(scope.calls)} was called once; what it returned is watched"
        note = f"{note}; {called}" if note else called
    again = target.again
    if any(map(tables.is_pandas, scope.chain)) and not scope.calls:
        again = _again(text, node, namespace, name)
    return replace(target, name=name or target.name, note=note, again=again)


def check_expression(expression: str) -> None:
    """Raise what `locate` would in any namespace: syntax, or that a new value is computed."""
    text = expression.strip()
    if not _SYMBOL.fullmatch(text):
        node = _parse(text)
        if not isinstance(node, _PLACES):
            raise _no_place(ast.unparse(node))


def bound(expression: str, namespace: Mapping[str, Any]) -> Callable[[], str] | None:
    """Tells the name that an expression begins with, once it stands for another object in a live namespace.

    Parameters
    ----------
    expression : str
        Of which a place was located.
    namespace : mapping
        Kept, and looked into at each call.
    """
    node = _parse(expression.strip())
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in namespace:
        return None
    name, number = node.id, id(namespace[node.id])
    return lambda: name if name in namespace and id(namespace[name]) != number else ""


# Evaluates the expression once more, on the same objects; what can be is kept by weak references only.
def _again(text: str, node: ast.expr, namespace: Mapping[str, Any], name: str | None) -> Callable[[], Target]:
    weak: dict[str, weakref.ref[Any]] = {}
    strong: dict[str, Any] = {}
    for used in {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} & set(namespace):
        try:
            weak[used] = weakref.ref(namespace[used])
        except TypeError:
            strong[used] = namespace[used]

    def again() -> Target:
        same = {used: found() for used, found in weak.items()}
        if any(value is None for value in same.values()):
            raise ReferenceError
        return locate(text, strong | same, name=name)

    return again


def _parse(text: str) -> ast.expr:
    if not text:
        raise TargetError("nothing to watch: the expression is empty.", hint="Name a place, such as `a[3]`.")
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        offset = getattr(error, "offset", None)
        column = f" at column {offset} (before `{text[offset - 1 :]}`)" if offset else ""
        message = getattr(error, "msg", None) or str(error)
        raise TargetError(f"cannot read `{text}`: {message}{column}.", slug="syntax") from error
    for inner in ast.walk(node):
        if type(inner) in _REFUSED:
            raise TargetError(
                f"cannot watch `{text}`: `{ast.unparse(inner)}` {_REFUSED[type(inner)]}.",
                hint="Name an existing place, such as `a[3]`.",
                slug="syntax",
            )
    return node


# The last step decides what is watched.
def _target(node: ast.expr, what: str, scope: _Scope) -> Target:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "!" in node.value:
        return symbol_target(node.value)
    if isinstance(node, ast.Name | ast.Constant):
        return target_of(_evaluate(node, scope), name=what)
    if isinstance(node, ast.Attribute):
        base = _value(node.value, scope)
        return places.attribute(base, node.attr, what, owner=_roots(scope))
    if isinstance(node, ast.Subscript):
        base = _value(node.value, scope)
        return places.item(base, _key(node, scope), what, owner=_roots(scope))
    raise _no_place(what)


def _no_place(what: str) -> TargetError:
    return TargetError(
        f"cannot watch `{what}`: it computes a new value, which is no place.",
        hint="Name an element or field, such as `a[3]`; assign what a call returns to a name first.",
        slug="copy",
    )


# The object before the last step, kept on its own memory all the way.
def _value(node: ast.expr, scope: _Scope) -> Any:
    if isinstance(node, ast.Attribute | ast.Subscript):
        base = _value(node.value, scope)
        key = _key(node, scope) if isinstance(node, ast.Subscript) else None
        try:
            if isinstance(node, ast.Attribute):
                value = places.attribute_value(base, node.attr, ast.unparse(node))
            else:
                value = places.item_value(base, key, ast.unparse(node))
        except Exception as error:
            raise _wrapped(node, error, dir(base) if isinstance(node, ast.Attribute) else (), node) from error
    else:
        if isinstance(node, _COMPUTED):
            raise _no_place(ast.unparse(node))
        if isinstance(node, ast.Call):
            scope.calls.append(ast.unparse(node))
        value = _evaluate(node, scope)
    scope.chain.append(value)
    return value


def _key(node: ast.Subscript, scope: _Scope) -> Any:
    return _evaluate(ast.Subscript(ast.Name(_KEY, ast.Load()), node.slice, ast.Load()), scope, node.slice)


def _evaluate(node: ast.expr, scope: _Scope, shown: ast.expr | None = None) -> Any:
    code = compile(ast.fix_missing_locations(ast.Expression(node)), "<hwwatch>", "eval")
    try:
        return eval(code, scope.names)
    except Exception as error:
        raise _wrapped(shown or node, error, (), None, scope) from error


def _wrapped(
    node: ast.expr, error: Exception, known: Any, step: ast.expr | None, scope: _Scope | None = None
) -> HwwatchError:
    if isinstance(error, HwwatchError):
        return error
    text = ast.unparse(node)
    wanted = step.attr if isinstance(step, ast.Attribute) else None
    if isinstance(error, NameError) and scope is not None and error.name not in scope.names:
        wanted, known = error.name, [n for n in (*scope.names, *dir(builtins)) if not n.startswith("__")]
        text = f"there is no name `{wanted}`"
    else:
        text = f"`{text}` raised {reason(error)}"
    near = get_close_matches(wanted, known, 1) if wanted and wanted not in known else []
    hint = f"Did you mean `{near[0]}`?" if near else ""
    return TargetError(f"cannot find the place: {text}.", hint=hint, slug="evaluate")


# cffi's parts do not keep the whole alive: keep every cdata on the way.
def _roots(scope: _Scope) -> object:
    return tuple(value for value in scope.chain if cdata.is_cdata(value)) or None
