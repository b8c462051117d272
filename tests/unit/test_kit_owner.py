"""A child whose owner is gone does not begin, and hands the owner on to nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cogitate.kit.lifecycle import OWNER

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's"),
]
CHILD = f"""
import os
from cogitate.kit.lifecycle import follow_owner
follow_owner()
print(os.environ.get({OWNER!r}, "nobody"))
"""


@pytest.mark.parametrize(
    ("pid", "code", "said"),
    [("", 0, "nobody\n"), (str(os.getpid()), 0, "nobody\n"), ("1", 1, "")],
)
def test_a_child_follows_its_living_owner_only(pid: str, code: int, said: str) -> None:
    environment = {**os.environ, OWNER: pid}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, said)
