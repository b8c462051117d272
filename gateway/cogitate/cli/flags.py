"""Flags that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cogitate.cli.mesh.plan import Options, Server

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h)?")


def duration(text: str) -> float:
    """Parses "10s", "500ms", "2m" or a number of seconds; greater than 0."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not (value := float(match[1]) * _UNITS[match[2] or ""]):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; say 10s, 500ms or 2m")
    return value


def positive(text: str) -> int:
    """Parses a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Parses "1,2,8"."""
    return tuple(positive(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Parses "all,posterior:0.95": names as they are, each once."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name")
    return found


def server(text: str) -> Server:
    """Parses "http://host:8080/v1#model"; an address without a path has its API at /v1."""
    url = urlsplit(text.strip())
    if url.scheme not in ("http", "https") or not url.hostname:
        raise argparse.ArgumentTypeError(
            f"{text[:200]!r} is no address of a server; say http://127.0.0.1:8080/v1"
        )
    if url.username or url.password:
        raise argparse.ArgumentTypeError(
            "a server's address is shown to people; its key goes by --server-key-variable"
        )
    base = url._replace(path=url.path.rstrip("/") or "/v1", fragment="")
    return Server(base.geturl(), url.fragment)


def json_schema(text: str) -> str:
    """Takes a JSON Schema, or the file it is in; the mesh judges what it says."""
    if text.lstrip().startswith("{"):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise argparse.ArgumentTypeError(f"there is no file {text[:200]!r} to read") from None


def add_access(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which mesh is meant."""
    group = parser.add_argument_group("which mesh")
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a gateway anywhere [COGITATE_ADDRESS; default: the mesh running here]",
    )
    group.add_argument("--name", default="default", help="a mesh of this machine (%(default)s)")


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what a mesh is made of."""
    group = parser.add_argument_group("what the mesh is made of")
    group.add_argument(
        "--decoders",
        type=positive,
        metavar="N",
        help="agent-decoders of ours, posing as providers in turn (2; none beside --server)",
    )
    group.add_argument(
        "--server",
        type=server,
        action="append",
        default=[],
        metavar="URL[#MODEL]",
        help="a server that speaks OpenAI's chat completions, such as llama.cpp, vLLM, Ollama or a "
        "hosted API, whose MODEL agents run on, too; may be given again",
    )
    group.add_argument(
        "--server-key-variable",
        default="",
        metavar="NAME",
        help="the environment variable that holds the servers' key",
    )
    group.add_argument(
        "--aggregators",
        type=positive,
        default=1,
        metavar="N",
        help="aggregators on one journal; when one dies, another goes on (%(default)s)",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="compute threads of each process (default: the cores shared by the decoders)",
    )
    group.add_argument(
        "--serve-model",
        metavar="NAME",
        help="model (that of --model, else mini, or the one that the server has)",
    )
    group.add_argument(
        "--otlp-endpoint",
        default="",
        metavar="URL",
        help="send spans and metrics there as well (OTLP/gRPC)",
    )
    group.add_argument(
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="of every process (%(default)s)",
    )


def mesh_options(args: argparse.Namespace) -> Options:
    """Returns what the mesh is made of; no model is one that the servers are to tell."""
    decoders = args.decoders or (0 if args.server else 2)
    return Options(
        decoders=decoders,
        aggregators=args.aggregators,
        model=args.serve_model or getattr(args, "model", "") or ("" if args.server else "mini"),
        threads=args.threads or default_threads(decoders),
        otlp_endpoint=args.otlp_endpoint,
        log_level=args.log_level,
        servers=tuple(args.server),
        key_variable=args.server_key_variable,
    )


def default_threads(decoders: int, cores: int | None = None) -> int:
    """Returns the cores that each decoder gets if all work at once; at least 1."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // max(1, decoders))
