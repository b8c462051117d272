"""The `cogitate` command: parses, dispatches, turns errors into exit codes.

0 all went well, 1 it failed, 2 it was used wrongly, 130 it was interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

COMMANDS: Final = (
    "ask",
    "up",
    "down",
    "models",
    "keys",
    "certs",
    "fleet",
    "trace",
    "explain",
    "replay",
    "evaluate",
    "simulate",
    "mcp",
    "doctor",
    "demo",
)

_DESCRIPTION = """\
One question, many agents, one answer with its reasons.

  cogitate ask "What is the sum of the red cards?" --image board.png --agents 8
  cogitate up --detach          start a mesh that stays
  cogitate doctor               what this machine lacks
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code of the process."""
    try:
        parser = build_parser()
    except ImportError as error:
        return _fail(f"{error.name} is missing: pip install 'cogitate[gateway]'", 2)
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help()
        return 2
    from cogitate.cli.mesh.processes import MeshError
    from cogitate.client import CogitateError

    try:
        return int(args.run(args))
    except UsageError as error:
        return _fail(str(error), 2)
    except (CogitateError, MeshError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader left; Python would complain about its own flush
        return 1


class UsageError(Exception):
    """The command was used wrongly, in a way the parser cannot see."""


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser with one subparser a command."""
    parser = argparse.ArgumentParser(
        prog="cogitate",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in COMMANDS:
        command: Any = importlib.import_module(f"cogitate.cli.commands.{name}")
        sub = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import version

        print(f"cogitate {version('cogitate')}")
        parser.exit()


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"cogitate: {message}\n")
    return code
