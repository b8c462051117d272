"""Every knob of a service: a frozen dataclass, filled from the environment and from flags.

A knob's unit is in its name: `_s` seconds, `_bytes`, `_count`. The variable of field `x` of
section `agent-decoder` is COGITATE_AGENT_DECODER_X, its flag is `--x`; the flag wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cogitate.kit.errors import InvalidRequest

MIB = 1024 * 1024

C = TypeVar("C")
_MODEL_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True}
_BOOLEANS |= {"0": False, "false": False, "no": False, "off": False}


class ConfigError(ValueError):
    """A knob was given a value it cannot take; the message names the knob, value and range."""


def knob(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declares a field of a configuration; `minimum` and `maximum` are inclusive."""
    limits = {"minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class ServiceConfig:
    """The knobs every service has."""

    # Whether strangers may call: who they are is then the service's own affair, not `tls_dir`'s.
    is_public: ClassVar[bool] = False

    listen: str = knob("127.0.0.1:0", "host:port to listen on; port 0 takes a free one")
    drain_grace_s: float = knob(
        10.0, "how long running work may go on after a stop was asked for", minimum=0, maximum=3600
    )
    max_message_bytes: int = knob(
        64 * MIB, "largest message sent or received", minimum=1024, maximum=2**31 - 1
    )
    max_concurrent_rpcs: int = knob(
        1000, "RPCs running at once; one more is refused", minimum=1, maximum=1_000_000
    )
    max_connection_rpcs: int = knob(
        0,
        "of these on one connection; more wait at the client. 0 is as many as there may be",
        minimum=0,
        maximum=1_000_000,
    )
    default_deadline_s: float = knob(
        120.0,
        "deadline of an RPC that brings none, and the longest one it may bring",
        minimum=0.001,
        maximum=86_400,
    )
    write_stall_s: float = knob(
        30.0, "how long a reader may leave a stream's write waiting", minimum=0.01, maximum=3600
    )
    max_metadata_bytes: int = knob(
        8192, "largest metadata of an RPC, counted as HTTP/2 does", minimum=256, maximum=MIB
    )
    otlp_endpoint: str = knob(
        "", "OTLP/gRPC address spans and metrics are sent to; empty sends none"
    )
    otlp_kept_span_count: int = knob(10_000, "spans kept while that is away", minimum=0)
    metrics_interval_s: float = knob(
        10.0, "how often metrics are sent there; 0 sends none", minimum=0.0, maximum=3600
    )
    prometheus_listen: str = knob(
        "", "host:port at which Prometheus scrapes metrics; empty listens nowhere"
    )
    load_report_interval_s: float = knob(
        0.1, "age of the load told in trailers (ORCA); 0 tells none", minimum=0.0, maximum=60
    )
    trace_store: str = knob("", "file of the local span store; empty keeps none")
    log_level: str = knob(
        "INFO",
        "least serious message that is logged",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_format: str = knob("text", "how: for people, or JSON a line", choices=("text", "json"))
    reflection: bool = knob(True, "serve gRPC reflection")
    tls_dir: str = knob(
        "", "folder with this service's certificate, key and roots; empty speaks plaintext"
    )
    tls_server_name: str = knob(
        "", "name that servers' certificates hold; empty expects the host that is called"
    )
    health_listen: str = knob(
        "", "host:port of health alone, in plaintext, for probes without a certificate"
    )
    ready_file: str = knob("", "file the bound address is written to once serving")


def load(
    cls: type[C],
    section: str,
    argv: Sequence[str] | None = None,
    env: Mapping[str, str] = os.environ,
) -> C:
    """Builds `cls` from its defaults, the environment and the flags, in rising precedence.

    `argv` None means this process's own arguments. Variables of the section that name no knob are
    left alone: Kubernetes puts some of its own there for a service called cogitate-<section>.
    Raises ConfigError; `--help` prints every knob and exits.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    flags = vars(_parser(cls, section).parse_args(sys.argv[1:] if argv is None else argv))
    values: dict[str, Any] = {}
    for field in fields:
        variable = variable_name(section, field.name)
        if flags.get(field.name) is not None:
            source, text = flag_name(field.name), flags[field.name]
        elif variable in env:
            source, text = variable, env[variable]
        else:
            continue
        values[field.name] = _parse(source, text, hints[field.name], field.metadata)
    return cls(**values)


def variable_name(section: str, field: str) -> str:
    """Returns the environment variable of a knob."""
    return f"COGITATE_{section}_{field}".upper().replace("-", "_")


def flag_name(field: str) -> str:
    """Returns the command-line flag of a knob."""
    return "--" + field.replace("_", "-")


def _parser(cls: type[Any], section: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"cogitate-{section}", description=cls.__doc__, allow_abbrev=False
    )
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else default
        bounds = _range(field.metadata)
        text = (
            f"{field.metadata.get('help', '')}{' (' + bounds + ')' if bounds else ''} "
            f"[{variable_name(section, field.name)}; default {shown!s}]"
        )
        parser.add_argument(
            flag_name(field.name),
            dest=field.name,
            default=None,
            metavar="VALUE",
            help=text.replace("%", "%%"),
            # A bare flag switches a boolean on; the value still decides when there is one.
            nargs="?" if hints[field.name] is bool else None,
            const="true" if hints[field.name] is bool else None,
        )
    return parser


def _parse(source: str, text: str, hint: Any, metadata: Mapping[str, Any]) -> Any:
    bounds = _range(metadata)
    try:
        value = _convert(text, hint)
    except ValueError:
        wanted = getattr(hint, "__name__", str(hint)) + (f" {bounds}" if bounds else "")
        raise ConfigError(f"{source}={text!r} is not valid; expected {wanted}") from None
    low, high = metadata.get("minimum"), metadata.get("maximum")
    choices = metadata.get("choices") or (value,)
    # Negated, so that NaN, which is below nothing and above nothing, is refused too.
    too_low = low is not None and not value >= low
    if too_low or (high is not None and not value <= high) or value not in choices:
        raise ConfigError(f"{source}={text!r} is out of range; allowed is {bounds}")
    return value


def _convert(text: str, hint: Any) -> Any:
    if hint is bool:
        if text.strip().lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.strip().lower()]
    if hint in (int, float, str, Path):
        return hint(text)
    if isinstance(hint, types.GenericAlias) and hint == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    raise TypeError(f"a knob cannot be of type {hint}")


def _range(metadata: Mapping[str, Any]) -> str:
    if metadata.get("choices"):
        return "one of " + ", ".join(metadata["choices"])
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is None and high is None:
        return ""
    return f"{-math.inf if low is None else low} to {math.inf if high is None else high}"


def model_directory(name: str, search: tuple[Path, ...] = ()) -> Path:
    """Returns the directory of the model called `name`: under `search`, else as installed.

    A name is never a path, so a request cannot point outside. Raises InvalidRequest saying which
    models there are.
    """
    roots = [*search, *_installed_model_roots()]
    if _MODEL_NAME.fullmatch(name):
        for root in roots:
            if (root / name).is_dir():
                return root / name
    known = sorted(
        {
            path.name
            for root in roots
            if root.is_dir()
            for path in root.iterdir()
            if path.is_dir() and _MODEL_NAME.fullmatch(path.name)
        }
    )
    raise InvalidRequest(
        f"unknown model {name[:64]!r}; there is: {', '.join(known) or 'none'}",
        field="model",
        reason="UNKNOWN_MODEL",
        metadata={"model": name[:64]},
    )


def _installed_model_roots() -> list[Path]:
    # `cogitate` is a namespace: in a checkout each service contributes a folder to its path.
    import cogitate

    return [Path(root) / "models" for root in cogitate.__path__]
