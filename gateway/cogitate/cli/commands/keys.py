"""`cogitate keys`: who may ask, and what each may."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from cogitate.cli import screen
from cogitate.gateway.accounts import Accounts
from cogitate.gateway.core.budgets import PERIODS, Amount, Budget, renews, shown
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import CogitateError
from rich.table import Table
from rich.text import Text

NAME: Final = "keys"
HELP: Final = "make, list and revoke API keys; budgets of tenants, and what they spent"
DESCRIPTION: Final = """\
Keeps the file of API keys that a gateway is given as its knob api_keys. Keys are shown once, when
they are made; the file holds hashes. What is changed holds at once, while gateways run.

  cogitate keys create --tenant ada                        prints the key alone to stdout
  cogitate keys create --tenant lab --models mini --max-contemplations 4 --requests-per-minute 120
  cogitate keys create --tenant lab --tokens-per-day 2000000 --usd-per-month 50
  cogitate keys budget lab --usd-per-month 80    of the tenant, whatever keys or tokens it has
  cogitate keys usage
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
    _add_budgets(create)
    create.add_argument(
        "--days", type=_count, default=0, metavar="N", help="after which it expires (never)"
    )
    actions.add_parser("list", parents=[shared], help="all keys, without their text")
    revoke = actions.add_parser("revoke", parents=[shared], help="shut a key out")
    revoke.add_argument("id", help="of the key, as `cogitate keys list` tells")
    budget = actions.add_parser("budget", parents=[shared], help="say what a tenant may spend")
    budget.add_argument("tenant", help="whose it is, by keys or by tokens")
    _add_budgets(budget)
    usage = actions.add_parser("usage", parents=[shared], help="what tenants spent, and may")
    usage.add_argument("tenant", nargs="?", default="", help="only this one")


def _add_budgets(parser: argparse.ArgumentParser) -> None:
    for period in PERIODS:
        parser.add_argument(
            f"--tokens-per-{period}",
            type=_count,
            metavar="N",
            help=f"sampled tokens of the tenant in a {period} of UTC; 0 lifts it",
        )
        parser.add_argument(
            f"--usd-per-{period}",
            type=_micro_usd,
            metavar="X",
            dest=f"micro_usd_per_{period}",
            help=f"US dollars of the tenant in a {period}; 0 lifts it",
        )


def run(args: argparse.Namespace) -> int:
    """Does what was asked."""
    try:
        store = KeyStore(args.file, create=args.action in ("create", "budget"))
        try:
            _ACTIONS[args.action](store, args)
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
    _budget(store, args)
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


def _budget(store: KeyStore, args: argparse.Namespace) -> None:
    given = {
        one.name: value for one in fields(Budget) if (value := getattr(args, one.name)) is not None
    }
    with closing(Accounts(args.file)) as accounts:
        if given:
            accounts.set_budget(args.tenant, replace(accounts.budget(args.tenant), **given))
        if args.action == "budget":
            _print_usage(accounts, [args.tenant])


def _usage(store: KeyStore, args: argparse.Namespace) -> None:
    with closing(Accounts(args.file)) as accounts:
        _print_usage(accounts, [args.tenant] if args.tenant else accounts.tenants())


def _print_usage(accounts: Accounts, tenants: Sequence[str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("tenant", "in this", "asked", "spent", "granted to what runs", "of", "renews"):
        table.add_column(column, header_style="dim")
    now = time.time()
    for tenant in tenants:
        budget = accounts.budget(tenant)
        for period, use in accounts.use(tenant).items():
            of = [
                shown(unit, limit)
                for unit in ("tokens", "micro_usd")
                if (limit := getattr(budget, f"{unit}_per_{period}"))
            ]
            table.add_row(
                tenant,
                period,
                str(use.contemplations),
                _amount(use.spent),
                _amount(use.granted) if use.granted != Amount() else "",
                ", ".join(of) or "no limit",
                f"{renews(period, now):%Y-%m-%d %H:%M} UTC" if of else "",
            )
    screen.console().print(table)


def _amount(amount: Amount) -> str:
    return f"{shown('tokens', amount.tokens)}, {shown('micro_usd', amount.micro_usd)}"


_ACTIONS: Final = {
    "create": _create,
    "list": _list,
    "revoke": _revoke,
    "budget": _budget,
    "usage": _usage,
}


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


def _micro_usd(text: str) -> int:
    try:
        value = Decimal(text) * 1_000_000
    except ArithmeticError:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of US dollars") from None
    if not 0 <= value <= 10**15:
        raise argparse.ArgumentTypeError("must be 0 to a thousand million US dollars")
    return int(value)


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).date().isoformat()
