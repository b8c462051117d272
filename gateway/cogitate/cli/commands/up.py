"""`cogitate up`: starts a mesh that stays."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from cogitate.cli import flags, screen
from cogitate.cli.certificates import folder as certificates
from cogitate.cli.mesh import state
from cogitate.cli.mesh.plan import Member, log_file, members, port_count
from cogitate.cli.mesh.processes import (
    START_TIMEOUT_S,
    MeshError,
    Processes,
    busy_ports,
    is_serving,
    post_mortem,
)
from cogitate.cli.starting import Starting
from cogitate.cli.store import offering
from rich.console import Console
from rich.table import Table
from rich.text import Text

CERTIFICATES: Final = "certificates"  # in the mesh's folder
KEEP_EVERY_S: Final = 60.0
NAME = "up"
HELP = "start a mesh that stays"
DESCRIPTION = """\
Starts gateway, aggregator, router, vision-encoder, tool-executor and the agent-decoders, each a
process of its own, and waits until all are serving. Ports count up from the base: gateway,
aggregator, router, vision-encoder, tool-executor, decoders, further aggregators, and the gateway's
for HTTP. Everything listens on loopback. Logs, journal and traces are kept under the state folder
(COGITATE_STATE, else ~/.local/state/cogitate/NAME). Any knob of a service can be set by its
environment variable, such as COGITATE_GATEWAY_MAX_AGENT_COUNT=16.

  cogitate up                       in the foreground; Ctrl-C drains and stops
  cogitate up --detach              in the background; `cogitate down` stops it
  cogitate up --decoders 4 --base-port 8100 --name wide
  cogitate up --model smollm2-135m-instruct
  cogitate up --server http://127.0.0.1:8080/v1      agents run on a server that is there already
  cogitate up --tls                 services show each other certificates, made for this mesh
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--detach", action="store_true", help="return once everything serves")
    parser.add_argument(
        "--base-port", type=flags.positive, default=7100, help="the gateway's (%(default)s)"
    )
    parser.add_argument("--name", default="default", help="of the mesh (%(default)s)")
    flags.add_mesh(parser)
    parser.add_argument("--model", default="", metavar="NAME", help="the same as --serve-model")
    parser.add_argument(
        "--tls",
        action="store_true",
        help="mutual TLS between services, by certificates that are kept and renewed in the state "
        "folder; the gateway's own doors stay as they are",
    )


def run(args: argparse.Namespace) -> int:
    """Starts a mesh, or says that it runs already."""
    console = screen.console()
    note = state.read(args.name)
    if note is not None:
        if note.state == "serving" and is_serving(note.gateway):
            console.print(f"The mesh {args.name!r} is running already.", highlight=False)
            _print_addresses(console, note)
            return 0
        raise MeshError(
            f"the mesh {args.name!r} is noted as {note.state} by process {note.supervisor.pid}, "
            "and does not answer; `cogitate down` ends it"
        )
    offering.located(flags.mesh_options(args), console)  # may ask, which a child cannot
    return _detach(args, console) if args.detach else _foreground(args, console)


def _foreground(args: argparse.Namespace, console: Console) -> int:
    processes = Processes(_plan(args), state.folder(args.name))
    kept = certificates.Plan(state.folder(args.name) / CERTIFICATES) if args.tls else None
    if kept is not None:
        _keep(kept)
    me = state.identity(os.getpid())
    starting = Starting(console, f"starting the mesh {args.name!r}")

    def note(what: str) -> state.Note:
        return state.Note(args.name, what, me, processes.noted())

    def changed(name: str, what: str) -> None:
        starting.changed(name, what)
        state.write(note("starting"))

    with _signals():
        try:
            starting.planned([member.name for member in processes.members])
            with starting.shown():
                processes.start(changed)
            state.write(note("serving"))
            _print_addresses(console, note("serving"))
            console.print("[dim]Ctrl-C drains and stops.[/dim]")
            _watch(processes, args.name, console, kept)
        except _Asked:
            console.print("draining …", highlight=False)
        finally:
            processes.stop()
            state.forget(args.name)
    console.print("stopped", highlight=False)
    return 0


def _keep(plan: certificates.Plan) -> None:
    try:
        certificates.keep(plan)
    except (OSError, ValueError) as error:
        raise MeshError(f"{plan.folder} cannot be kept: {error}") from None


def _watch(
    processes: Processes, name: str, console: Console, kept: certificates.Plan | None
) -> None:
    looked_s = time.monotonic()
    while True:
        if kept is not None and time.monotonic() - looked_s > KEEP_EVERY_S:
            looked_s = time.monotonic()
            _keep(kept)
        for who, code in processes.died():
            log = log_file(state.folder(name), who)
            console.print(Text(post_mortem(who, code, log), "red"))
        time.sleep(0.2)


def _detach(args: argparse.Namespace, console: Console) -> int:
    planned = _plan(args)
    log = log_file(state.folder(args.name), "up")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "cogitate.cli", "up", *_again(args)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    starting = Starting(console, f"starting the mesh {args.name!r} in the background")
    starting.planned([member.name for member in planned])
    with starting.shown():
        note = _wait(args.name, child, planned, starting)
    _print_addresses(console, note)
    return 0


def _wait(
    name: str, child: subprocess.Popen[bytes], planned: tuple[Member, ...], starting: Starting
) -> state.Note:
    ends = time.monotonic() + START_TIMEOUT_S + 10
    serving: set[str] = set()
    while time.monotonic() < ends:
        if child.poll() is not None:
            said = "\n".join(state.tail(log_file(state.folder(name), "up"), 16))
            raise MeshError(f"the mesh did not start:\n{said}")
        note = state.read(name)
        for member in planned if note is not None else ():
            if member.name not in serving and is_serving(member.address, probe_as=member.probe_as):
                serving.add(member.name)
                starting.changed(member.name, "serving")
        if note is not None and note.state == "serving" and len(serving) == len(planned):
            return note
        time.sleep(0.1)
    child.terminate()
    raise MeshError("the mesh did not get ready in time; see its logs")


def _plan(args: argparse.Namespace) -> tuple[Member, ...]:
    options = offering.located(flags.mesh_options(args), screen.console())
    try:
        folder = state.folder(args.name)
    except ValueError as error:
        raise MeshError(str(error)) from None
    if args.tls:
        options = replace(options, certificates=str(folder / CERTIFICATES))
    ports = range(args.base_port, args.base_port + port_count(options))
    if ports[-1] > 65_535:
        raise MeshError(f"--base-port {args.base_port} leaves no room for {len(ports)} ports")
    if busy := busy_ports(options.host, ports):
        raise MeshError(
            f"port {', '.join(map(str, busy))} is in use by another program; "
            "choose another with --base-port"
        )
    return members(options, ports, folder, state.trace_store(args.name))


def _again(args: argparse.Namespace) -> list[str]:
    again = ["--base-port", args.base_port, "--name", args.name]
    again += ["--aggregators", args.aggregators, "--log-level", args.log_level]
    if args.decoders:
        again += ["--decoders", args.decoders]
    if model := flags.mesh_options(args).model:
        again += ["--serve-model", model]
    for server in args.server:
        again += ["--server", f"{server.url}#{server.model}" if server.model else server.url]
    if args.server_key_variable:
        again += ["--server-key-variable", args.server_key_variable]
    if args.tls:
        again += ["--tls"]
    if args.threads:
        again += ["--threads", args.threads]
    if args.otlp_endpoint:
        again += ["--otlp-endpoint", args.otlp_endpoint]
    return [str(part) for part in again]


def _print_addresses(console: Console, note: state.Note) -> None:
    table = Table.grid(padding=(0, 2))
    for member in note.members:
        is_gateway = member.name == "gateway"
        table.add_row(
            Text("●", "green"),
            Text(member.name, "bold" if is_gateway else ""),
            member.address,
            Text("ask here" if is_gateway else "", "dim"),
        )
    for row in _http_rows(note):
        table.add_row("", "", *row)
    console.print(table)
    console.print(f"[dim]logs and traces[/dim] {state.folder(note.name)}", highlight=False)


def _http_rows(note: state.Note) -> tuple[tuple[Text, Text], ...]:
    address = next((member.http for member in note.members if member.http), "")
    return (
        (Text(f"http://{address}/"), Text("or here, in a browser", "dim")),
        (Text(f"http://{address}/v1"), Text("or here, with OpenAI's clients", "dim")),
    )


class _Asked(Exception):
    """The mesh was asked to stop."""


@contextmanager
def _signals() -> Iterator[None]:
    """Turns the first signal into _Asked; later ones are left to the stop that is under way."""

    def on_signal(number: int, frame: Any) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise _Asked

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.signal(one, on_signal) for one in numbers}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
