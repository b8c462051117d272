"""`cogitate keys`: who may ask, and what each may."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cogitate.cli import screen
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import CogitateError
from rich.table import Table
from rich.text import Text

NAME: Final = "keys"
HELP: Final = "make, list and revoke API keys"
DESCRIPTION: Final = """\
Keeps the file of API keys that a gateway is given as its knob api_keys. Keys are shown once, when
they are made; the file holds hashes. What is changed holds at once, while gateways run.

  cogitate keys create --tenant ada                        prints the key alone to stdout
  cogitate keys create --tenant lab --models mini --max-contemplations 4 --requests-per-minute 120
  cogitate keys list
  cogitate keys revoke 1a2b3c4d
  COGITATE_GATEWAY_API_KEYS=keys.sqlite cogitate up        a mesh that asks for keys
"""
DEFAULT_FILE: Final = "keys.sqlite"
_DAY_S: Final = 86_400.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", dest="action")
    actions.required = True
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--file",
        type=Path,
        default=Path(os.environ.get("COGITATE_GATEWAY_API_KEYS") or DEFAULT_FILE),
        help=f"of keys (COGITATE_GATEWAY_API_KEYS, else {DEFAULT_FILE})",
    )
    create = actions.add_parser("create", parents=[shared], help="make a key and print it")
    create.add_argument("--tenant", required=True, metavar="NAME", help="whose it is")
    for what in ("models", "tools", "providers"):
        create.add_argument(
            f"--{what}",
            metavar="NAMES",
            default="",
            help=f"{what} it may use, comma separated (all)",
        )
    create.add_argument(
        "--max-contemplations", type=_count, default=0, metavar="N", help="at once (no limit)"
    )
    create.add_argument(
        "--requests-per-minute", type=_count, default=0, metavar="N", help="(no limit)"
    )
    create.add_argument(
        "--days", type=_count, default=0, metavar="N", help="after which it expires (never)"
    )
    actions.add_parser("list", parents=[shared], help="all keys, without their text")
    revoke = actions.add_parser("revoke", parents=[shared], help="shut a key out")
    revoke.add_argument("id", help="of the key, as `cogitate keys list` tells")


def run(args: argparse.Namespace) -> int:
    """Does what was asked."""
    try:
        store = KeyStore(args.file, create=args.action == "create")
        try:
            {"create": _create, "list": _list, "revoke": _revoke}[args.action](store, args)
        finally:
            store.close()
    except CogitateError as error:
        sys.stderr.write(f"cogitate: {error.message}\n")
        return 1
    return 0


def _create(store: KeyStore, args: argparse.Namespace) -> None:
    grant = Grant(
        tenant=args.tenant,
        models=_names(args.models),
        tools=_names(args.tools),
        providers=_names(args.providers),
        max_contemplation_count=args.max_contemplations,
        max_requests_per_minute=args.requests_per_minute,
    )
    expires_s = time.time() + args.days * _DAY_S if args.days else None
    key, text = store.create(grant, expires_s=expires_s)
    sys.stderr.write(f"key {key.id} of {args.tenant}; it is not shown again:\n")
    print(text)


def _list(store: KeyStore, args: argparse.Namespace) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("key", "tenant", "made", "state", "may"):
        table.add_column(column, header_style="dim")
    now = time.time()
    for key in store.keys():
        holds = key.holds(now)
        state = "holds" if holds else "revoked" if key.revoked_s else "expired"
        table.add_row(
            key.id,
            key.grant.tenant,
            _day(key.created_s),
            Text(state, "green" if holds else "dim"),
            _told(key.grant),
        )
    screen.console().print(table)


def _revoke(store: KeyStore, args: argparse.Namespace) -> None:
    store.revoke(args.id)
    screen.console().print(f"key {args.id} opens nothing any more", highlight=False)


def _told(grant: Grant) -> str:
    told = [
        f"{what} {', '.join(sorted(names))}"
        for what, names in (
            ("models", grant.models), ("tools", grant.tools), ("providers", grant.providers),
        )
        if names
    ]  # fmt: skip
    if grant.max_contemplation_count:
        told.append(f"{grant.max_contemplation_count} contemplations at once")
    if grant.max_requests_per_minute:
        told.append(f"{grant.max_requests_per_minute} requests a minute")
    return "; ".join(told) or "everything"


def _names(text: str) -> frozenset[str]:
    return frozenset(one.strip() for one in text.split(",") if one.strip())


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).date().isoformat()
