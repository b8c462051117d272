"""The three tools, as the runtime offers them: zoom, calculator, prove; nothing is eval()ed."""

import ast
import operator
import re
from collections.abc import Callable, Sequence

from cogitate.evals.boards import Box
from cogitate.evals.checks import proves

WRONG_CALL = "error"

_ZOOM = re.compile(r"zoom\((\d{1,3}), (\d{1,3}), (\d{1,3}), (\d{1,3})\)")
_CALCULATOR = re.compile(r"calculator\(([-+*()\d, maxin]{1,200})\)")
_PROVE = re.compile(r"prove\((\d+), (\d+(?: \d+)*), ([-+*=\d, ]+)\)")
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_FUNCTIONS: dict[str, Callable[[Sequence[int]], int]] = {"max": max, "min": min}


def _value(node: ast.expr) -> int:
    """Returns the value of an expression of integers, + - *, max and min; raises ValueError."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS and args:
            return _FUNCTIONS[name]([_value(arg) for arg in args])
    raise ValueError("not an expression the calculator knows")


def parse_zoom(call: str) -> Box | None:
    """Returns the box of a zoom call in percent, None if it is anything else."""
    match = _ZOOM.fullmatch(call)
    if match is None:
        return None
    x0, y0, x1, y1 = (int(value) for value in match.groups())
    return (x0, y0, x1, y1) if x0 < x1 <= 100 and y0 < y1 <= 100 else None


def run_text_tool(call: str) -> str:
    """Returns what `calculator(...)` or `prove(...)` answers."""
    if match := _CALCULATOR.fullmatch(call):
        try:
            return str(_value(ast.parse(match[1].strip(), mode="eval").body))
        except (ValueError, SyntaxError, RecursionError):
            return WRONG_CALL
    if match := _PROVE.fullmatch(call):
        numbers = [int(number) for number in match[2].split(" ")]
        return "proved" if proves(match[3], numbers, int(match[1])) else "wrong"
    return WRONG_CALL
