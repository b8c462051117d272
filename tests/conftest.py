"""Rules for every test: one category a module, no task left behind, seeds shown on failure."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

CATEGORIES = frozenset({"unit", "property", "contract", "replay", "integration", "chaos"})
ROOT = Path(__file__).parents[1]
LEAK_GRACE_S = 1.0

# No deadline: the machine may be busy, and how long an example takes is no property.
settings.register_profile(
    "house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fails the collection if a module has no category, or two."""
    modules = {item.getparent(pytest.Module) for item in items} - {None}
    for module in sorted(modules, key=lambda module: module.nodeid if module else ""):
        assert module is not None
        marks = {mark.name for mark in module.own_markers} & CATEGORIES
        if len(marks) != 1:
            wanted = ", ".join(sorted(CATEGORIES))
            raise pytest.UsageError(
                f"{module.nodeid}: needs `pytestmark = pytest.mark.<category>` with exactly one "
                f"of {wanted}; it has {', '.join(sorted(marks)) or 'none'}"
            )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Makes an asynchronous test fail if a task it started is still running when it is over."""
    test = getattr(item, "obj", None)
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(test):
        item.obj = _without_leaks(test)
    return (yield)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Prints how to repeat a failed run in the same order."""
    seed = config.getoption("randomly_seed", None)
    if exitstatus and seed is not None:
        terminalreporter.write_line(f"to repeat this order: pytest --randomly-seed={seed}")


def _without_leaks(test: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        leaked = _ours(asyncio.all_tasks() - before)
        if leaked:
            await asyncio.wait(leaked, timeout=LEAK_GRACE_S)
        names = sorted(task.get_name() for task in leaked if not task.done())
        assert not names, f"the test left tasks running: {', '.join(names)}"

    return checked


def _ours(tasks: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Returns the tasks that run this repository's code; libraries look after their own."""

    def file_of(task: asyncio.Task[Any]) -> Path:
        code = getattr(task.get_coro(), "cr_code", None)
        return Path(code.co_filename) if code is not None else Path("/")

    def is_ours(path: Path) -> bool:
        return path.is_relative_to(ROOT) and "site-packages" not in path.parts

    return {task for task in tasks if is_ours(file_of(task))}
