"""Renders a checkpoint's Jinja template as untrusted code: no reach, no endless loop, no flood.

On top of Jinja's ImmutableSandboxedEnvironment: filters and methods that make much of little are
left out or measured, the items of all loops are counted, every value that is put together is
measured, and the clock is looked at in all these places. Nothing that a user wrote ever enters a
template (see `chat_template`), so the limits can be tight. There is no clock for the template: a
prompt is the same tomorrow.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_VALUE_SIZE = 1024 * 1024  # characters and items of any value while rendering, and of the result
MAX_ITEMS = 200_000  # of all loops of one rendering together
MAX_RENDER_S = 2.0
_MAX_NUMBER = 100_000
_MAX_POWER = 16
_FILTERS = frozenset(
    "abs capitalize count d default dictsort e escape first float int items join last length list "
    "lower map max min reject rejectattr reverse round safe select selectattr sort string sum "
    "title trim unique upper".split()
)
_UNSAFE_METHODS = frozenset("format format_map center ljust rjust zfill expandtabs".split())


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the limits built in."""

    intercepted_binops = frozenset("+ * ** %".split())

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            cache_size=0,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self._monotonic = monotonic
        self.begin()
        self.filters = {name: f for name, f in self.filters.items() if name in _FILTERS}
        self.filters |= {
            "tojson": _to_json,
            "replace": _replace,
            "counted": self.counted,
            "measured": self.measured,
        }
        kept = ("range", "namespace", "dict")
        self.globals = {name: self.globals[name] for name in kept}
        self.globals["raise_exception"] = _raise

    def begin(self) -> None:
        """A rendering begins: its limits are counted from here."""
        self._ends = self._monotonic() + MAX_RENDER_S
        self._num_items = 0

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes over."""
        for item in items:
            self._num_items += 1
            if self._num_items > MAX_ITEMS:
                raise SecurityError("it loops too often")
            self._check_time()
            yield item

    def measured(self, value: Any) -> Any:
        """A value that was put together."""
        self._check_time()
        if _size(value, MAX_VALUE_SIZE) > MAX_VALUE_SIZE:
            raise SecurityError("it makes too long a text")
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _UNSAFE_METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> None:
        """Jinja would let a formatting of its own through: none is."""

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, int) and abs(a) > _MAX_NUMBER for a in (*args, *kwargs.values())):
            raise SecurityError("it asks for too large a number")
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and obj.__name__ in ("replace", "join"):
            _check_product(owner, args)
        return self.measured(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats by %")
        if operator in ("*", "**"):
            for value in (left, right):
                if not isinstance(value, int | float) or abs(value) > _MAX_NUMBER:
                    raise SecurityError("it multiplies what is too large")
            if operator == "**" and abs(right) > _MAX_POWER:
                raise SecurityError("it multiplies what is too large")
        return self.measured(super().call_binop(context, operator, left, right))

    def _check_time(self) -> None:
        if self._monotonic() > self._ends:
            raise SecurityError("it takes too long")


class _Generation(Extension):
    """`{% generation %}` marks what training looks at; here it is what is in it."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Guards(NodeTransformer):
    """Puts `counted` around what loops go over and `measured` around what puts values together."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, "counted")
        return node

    def _measured(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        is_target = getattr(node, "ctx", "load") != "load"  # the a, b of `for a, b in …`
        return node if is_target else self._filtered(node, "measured")

    def _filtered(self, node: Any, name: str) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None)
        made.set_lineno(node.lineno)
        made.set_environment(self._environment)
        return made

    visit_Concat = visit_Filter = visit_List = visit_Tuple = visit_Dict = _measured


class ChatMarkup:
    """A compiled template. ``source`` is untrusted. Raises ValueError if it cannot be used."""

    def __init__(self, source: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ValueError(f"the chat template is longer than {MAX_TEMPLATE_CHARS} characters")
        self._environment = _Environment(monotonic)
        self._alone = threading.Lock()  # limits are of one rendering
        try:
            tree = self._environment.parse(source)
            if any(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
                raise ValueError("the chat template wants other files")
            guarded = _Guards(self._environment).visit(tree)
            self._template = self._environment.from_string(guarded)
        except (TemplateError, RecursionError, SyntaxError) as error:
            raise ValueError(f"the chat template cannot be read: {_said(error)}") from None

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises ValueError with the template's own words, or with the limit that was met."""
        pieces: list[str] = []
        length = 0
        with self._alone:
            self._environment.begin()
            try:
                for piece in self._template.generate(dict(values)):
                    length += len(piece)
                    if length > MAX_VALUE_SIZE:
                        raise SecurityError("it makes too long a text")
                    pieces.append(piece)
            except Exception as error:  # a template may do anything that Python can
                raise ValueError(_said(error)) from None
        return "".join(pieces)


def _size(value: Any, budget: int) -> int:
    """Characters and items in the value, nested ones included; stops when above the budget."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if not isinstance(value, list | tuple):
        return 1
    total = len(value)
    for item in value:
        if total > budget:
            break
        total += _size(item, budget - total)
    return total


def _said(error: BaseException) -> str:
    return f"{error}"[:200] if isinstance(error, TemplateError) else type(error).__name__


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message)[:200])


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As Hugging Face has it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else indent % 9)


def _replace(text: Any, old: Any, new: Any) -> str:
    _check_product(str(text), (str(new),))
    return str(text).replace(str(old), str(new))


def _check_product(owner: str, args: tuple[Any, ...]) -> None:
    """Replacing and joining write one thing for each of another."""
    length = sum(len(str(arg)) for arg in args)
    if (len(owner) + 1) * (length + 1) > 16 * MAX_VALUE_SIZE:
        raise SecurityError("it makes too long a text")
