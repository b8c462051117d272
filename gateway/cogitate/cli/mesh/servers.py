"""Which model the servers behind a mesh have, as they list it themselves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Final

from cogitate.cli.mesh.plan import Options, Server
from cogitate.cli.mesh.processes import MeshError

TIMEOUT_S: Final = 10.0
_LISTED_BYTES: Final = 4 * 1024 * 1024
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+")


def located(options: Options, env: Mapping[str, str] = os.environ) -> Options:
    """Asks each server what it has; returns the options with the model's name here and there.

    The name here is the one that was chosen, else that of the first server's model. Raises
    MeshError if a server cannot be asked, lacks the model, or the choice is open.
    """
    key = env.get(options.key_variable, "").strip() if options.key_variable else ""
    if options.key_variable and not key:
        raise MeshError(f"the environment variable {options.key_variable!r} is not set or empty")
    found = []
    chosen = options.model
    for server in options.servers:
        model = _chosen(server.url, listed(server.url, key), server.model or chosen)
        chosen = chosen or model
        found.append(Server(server.url, model))
    return dataclasses.replace(options, model=name_of(chosen), servers=tuple(found))


def name_of(model: str) -> str:
    """A server's name of a model as one of this mesh: without its folders and its file's ending."""
    last = model.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return _UNFIT.sub("-", last).strip("-.")[:64] or "model"


def listed(url: str, key: str = "") -> list[str]:
    """The names of a server's models. Raises MeshError, which never shows the key."""
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/models")
        if key:
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            body = json.loads(response.read(_LISTED_BYTES))
        return [str(model["id"]) for model in body["data"]]
    except urllib.error.HTTPError as error:
        error.close()
        raise MeshError(
            f"the server at {url} answers {error.code} when asked for its models; is the address "
            "its base, such as http://127.0.0.1:8080/v1, and does it want a key "
            "(--server-key-variable)?"
        ) from None
    except OSError as error:  # URLError and timeouts, too
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise MeshError(f"the server at {url} cannot be reached: {reason}") from None
    except (ValueError, TypeError, KeyError):
        raise MeshError(
            f"what answers at {url}/models is not a list of models; the address of a server is its "
            "base, such as http://127.0.0.1:8080/v1"
        ) from None


def _chosen(url: str, names: Sequence[str], wanted: str) -> str:
    """The server's name of a model that may be named as here; its only one if none is wanted."""
    if wanted in names:
        return wanted
    for name in names:
        if wanted and name_of(wanted) == name_of(name):
            return name
    if len(names) == 1 and not wanted:
        return names[0]
    if not names:
        raise MeshError(f"the server at {url} lists no model")
    some = ", ".join(sorted(names)[:12]) + (", …" if len(names) > 12 else "")
    if wanted:
        raise MeshError(
            f"the server at {url} has no model {wanted!r} but {some}; if one of these is meant, "
            f"say so: --server {url}#{sorted(names)[0]}"
        )
    raise MeshError(f"the server at {url} has several models; choose by --serve-model: {some}")
