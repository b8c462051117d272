"""`cogitate mcp`: the mesh as tools of the Model Context Protocol."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from cogitate.cli import flags
from cogitate.cli.main import UsageError
from cogitate.cli.mesh import access

NAME = "mcp"
HELP = "let other agents ask, as a server of the Model Context Protocol"
DESCRIPTION = """\
Serves the tools `contemplate` and `list_models` on standard input and output, as desktop agents and
editors start it, or by HTTP at /mcp. A mesh must run (`cogitate up --detach`).

  cogitate mcp --images ~/pictures
  {"mcpServers": {"cogitate": {"command": "cogitate", "args": ["mcp"]}}}

By HTTP each caller's `Authorization` header is passed on to the mesh, whose keys hold.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    flags.add_access(parser)
    parser.add_argument("--http", metavar="HOST:PORT", help="serve streamable HTTP there instead")
    parser.add_argument(
        "--allow-host",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="a name by which callers may reach --http, beside localhost and its own; repeatable",
    )
    parser.add_argument(
        "--images", metavar="FOLDER", type=Path, help="pictures may be files below this folder"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until its input ends, or Ctrl-C."""
    try:
        from cogitate.cli import mcp_server
        from mcp.server.transport_security import TransportSecuritySettings
    except ImportError:
        raise UsageError("mcp is missing: pip install 'cogitate[mcp]'") from None
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f"{args.images} is no folder")
    address = access.require(args.name, args.address).address
    server = mcp_server.build(mcp_server.Asker(address, args.images))
    if not args.http:
        asyncio.run(server.run_stdio_async())
        return 0
    host, _, port = args.http.rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError("--http takes HOST:PORT")
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[args.http, f"localhost:{port}", *args.allow_host],
        allowed_origins=[],
    )
    asyncio.run(
        server.run_streamable_http_async(
            host=host,
            port=int(port),
            stateless_http=True,
            max_request_body_size=mcp_server.MAX_BODY_BYTES,
            transport_security=security,
        )
    )
    return 0
