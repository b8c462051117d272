"""`cogitate certs`: certificates for a mesh of one's own."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

from cogitate.cli import flags, screen
from cogitate.cli.certificates import folder
from cogitate.cli.certificates.folder import LOCAL_HOSTS, Plan, keep

NAME: Final = "certs"
HELP: Final = "make certificates for mutual TLS between services"
DESCRIPTION: Final = """\
Makes a certificate authority for development, and for each service a folder that its knob tls_dir
is given. Run again, it renews what is soon over and leaves the rest; services take new files while
they run. In production a tool such as cert-manager or SPIRE keeps such folders (docs/security.md).

  cogitate certs                              into ./certs, for 24 hours
  cogitate certs --renew                      all of them anew, by the same authority
  cogitate certs --host router.example.org --hours 72
  cogitate up --tls                           a local mesh that makes and renews its own
"""
DEFAULT_FOLDER: Final = Path("certs")
_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--dir", type=Path, default=DEFAULT_FOLDER, help="to keep them in (%(default)s)"
    )
    parser.add_argument(
        "--trust-domain",
        type=_domain,
        default="cogitate.local",
        metavar="NAME",
        help="(%(default)s)",
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help=f"name or address that services are called by, beside {', '.join(LOCAL_HOSTS)} and "
        "their own names; may be given several times",
    )
    parser.add_argument(
        "--hours", type=flags.positive, default=24, metavar="N", help="of validity (%(default)s)"
    )
    parser.add_argument("--renew", action="store_true", help="make all anew, whatever is left")


def run(args: argparse.Namespace) -> int:
    """Makes them."""
    plan = Plan(
        args.dir, args.trust_domain, timedelta(hours=args.hours), (*LOCAL_HOSTS, *args.host)
    )
    try:
        done = keep(plan, renew=args.renew)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cogitate: {args.dir}: {error}\n")
        return 1
    made = [name for name, new in done.items() if new]
    console = screen.console()
    console.print(f"{len(made)} made, {len(done) - len(made)} kept in {args.dir}", highlight=False)
    console.print(f"[dim]the authority's key {args.dir / 'ca' / folder.KEY} can name anybody[/dim]")
    return 0


def _domain(text: str) -> str:
    if not _DOMAIN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no trust domain, such as example.org")
    return text
