"""Whether this machine can make sandboxes, for tests that need one."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache


@cache
def missing() -> str:
    """Returns what is missing for a sandbox; empty if one can be made."""
    for name in ("bwrap", "prlimit", "setpriv"):
        if shutil.which(name) is None:
            return f"there is no {name}"
    command = ["bwrap", "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "/usr/bin/true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stderr.strip()[:200] or "it failed" if done.returncode else ""
