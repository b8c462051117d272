"""A checkpoint's template is untrusted code: what it may, what it may not, and that it ends."""

from __future__ import annotations

import time

import pytest
from cogitate.agent_decoder.model.sandbox import MAX_TEMPLATE_CHARS, MAX_VALUE_SIZE, ChatMarkup

pytestmark = pytest.mark.unit

MESSAGES = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def render(source: str) -> str:
    return ChatMarkup(source).render({"messages": MESSAGES, "bos_token": "<s>"})


COUNT = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}"
)
SKIP = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"


def grown(first: str, step: str) -> str:
    """A value that grows sixty times, and is shown."""
    loop = "{% for a in range(60) %}{% set ns.x = " + step + " %}{% endfor %}{{ ns.x }}"
    return "{% set ns = namespace(x=" + first + ") %}" + loop


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{% for m in messages %}{{ m.role ~ m['content'] }};{% endfor %}", "userx;assistanty;"),
        ("{% for m in messages[::-1] %}{{ loop.index }}{{ loop.last }}{% endfor %}", "1False2True"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "x"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        (COUNT, "2"),
        ("{{ messages | map(attribute='role') | join(',') | upper }}", "USER,ASSISTANT"),
        ("{{ '<é>' | tojson }}{{ [1] | tojson(indent=2) }}", '"<é>"[\n  1\n]'),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(bos_token) }}", "[<s>]"),
        ("{{ ' a ' | trim }}{{ 'a-b'.split('-')[-1] }}{{ 'xyx'.replace('x', 'z') }}", "abzyz"),
        (SKIP, "assistant"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "x"),
        ("{% if tools is defined %}t{% endif %}{{ messages | length }}", "2"),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
    ],
)
def test_what_templates_of_models_use(source: str, shown: str) -> None:
    assert render(source) == shown


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ render.__globals__ }}{{ self.__init__.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ raise_exception('no') }}",
        "{{ undefined_function() }}",
        "{{ cycler('a').next() }}{{ lipsum() }}",
        "{{ strftime_now('%Y') }}",
        "{{ ''.format() }}",
        "{{ '%099999999d' % 1 }}",
        "{{ 'a' * 99999999 }}",
        "{{ 99999 ** 9999 }}",
        "{{ 'a'.ljust(9) }}",
        "{{ range(999999999) | list }}",
        "{{ [0] * 3 }}",
    ],
)
def test_what_they_may_not(source: str) -> None:
    with pytest.raises(ValueError) as caught:
        render(source)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        grown("'ab'", "ns.x ~ ns.x"),
        grown("'ab'", "ns.x + ns.x"),
        grown("[1]", "[ns.x, ns.x]"),
        grown("[1]", "ns.x + ns.x"),
        grown("'aaaaaaaa'", "ns.x.replace('a', ns.x)"),
        grown("'aaaaaaaa'", "ns.x | replace('a', ns.x)"),
        grown("'aaaaaaaa'", "ns.x.join(ns.x)"),
        "{% for a in range(99999) %}" + "x" * 100 + "{% endfor %}",
        "{% for a in 'abcdefghij' %}" * 9 + "{% endfor %}" * 9,
    ],
    ids=range(12),
)
def test_they_end(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError):
        render(source)
    assert time.monotonic() - began < 10, "the limit is 2 s, and the machine may be busy"


def test_the_clock_ends_what_counts_do_not() -> None:
    now = iter(range(10**6))
    markup = ChatMarkup(
        "{% for a in range(9) %}{{ a }}{% endfor %}", monotonic=lambda: float(next(now))
    )
    with pytest.raises(ValueError, match="takes too long"):
        markup.render({})


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% if %}", "cannot be read"),
        ("{% include 'x' %}", "other files"),
        ("{% import 'x' as y %}", "other files"),
        ("{{ x | format(1) }}", "cannot be read"),
        ("{{ x | center(9) }}", "cannot be read"),
        ("x" * (MAX_TEMPLATE_CHARS + 1), "longer"),
    ],
)
def test_what_is_refused_before_it_runs(source: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ChatMarkup(source)


def test_a_text_of_just_the_largest_size_passes() -> None:
    line = "x" * 1023 + "\n"
    source = "{% for a in range(" + str(MAX_VALUE_SIZE // 1024) + ") %}" + line + "{% endfor %}"
    assert len(render(source)) == MAX_VALUE_SIZE
    with pytest.raises(ValueError, match="too long"):
        render(source + "y")


def test_one_rendering_does_not_use_up_the_next() -> None:
    markup = ChatMarkup("{% for a in range(90000) %}{% endfor %}done")
    assert [markup.render({}) for _ in range(4)] == ["done"] * 4
