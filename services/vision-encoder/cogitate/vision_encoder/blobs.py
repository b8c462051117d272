"""Stored images: in memory within a budget, and mirrored in a folder where one is configured.

Layout: `t-<tenant>/<sha256 hex>.<width>x<height>.<png|jpeg|webp|gif>`. A file's modification time
is when it was stored. What does not hash to its name is deleted when it is read back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from cogitate.kit.errors import NotFound
from cogitate.vision_encoder.core.digests import blob_digest
from cogitate.vision_encoder.core.tenant_lru import TenantLru
from cogitate.vision_encoder.core.types import Blob

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What an entry costs beside its bytes.
_ENTRY_BYTES = 512
_PARTIAL = ".partial"
_FILE = re.compile(r"([0-9a-f]{64})\.(\d{1,5})x(\d{1,5})\.(png|jpeg|webp|gif)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TENANT = re.compile(r"t-([A-Za-z0-9._-]{1,64})")


class Blobs:
    """The blob store. Its methods belong to the event loop; files are touched on its own thread."""

    def __init__(self, budget_bytes: int, directory: str) -> None:
        self._held: TenantLru[str, Blob] = TenantLru(budget_bytes)
        self._folder = Folder(Path(directory)) if directory else None
        # One thread, so that a file's write and its removal keep their order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blob-files")

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self._held.num_bytes

    async def load(self) -> None:
        """Reads the folder back, the newest first, as far as the budget goes."""
        if self._folder is not None:
            stored = await self._on_thread(partial(self._folder.read, self._held.budget_bytes))
            for tenant, blob in stored:
                await self.put(tenant, blob, is_on_disk=True)

    def find(self, tenant: str, digest: str) -> Blob | None:
        """Returns a tenant's blob and marks it as used, or None."""
        return self._held.get(tenant, digest)

    async def recall(self, tenant: str, digest: str) -> None:
        """Reads a blob that another vision-encoder stored in the same folder, if there is one."""
        if self._folder is not None and self._held.get(tenant, digest) is None:
            stored = await self._on_thread(partial(self._folder.find, tenant, digest))
            if stored is not None:
                await self.put(tenant, stored, is_on_disk=True)

    def get(self, tenant: str, digest: str) -> Blob:
        """Returns a tenant's blob. Raises NotFound, also if it is another tenant's."""
        blob = self.find(tenant, digest)
        if blob is None:
            raise NotFound(
                "an image with this digest is not stored; send its bytes",
                metadata={"digest": digest},
            )
        return blob

    async def put(self, tenant: str, blob: Blob, *, is_on_disk: bool = False) -> None:
        """Stores a blob; returns once it is in the folder, if there is one."""
        evicted = self._held.put(tenant, blob.digest, blob, len(blob.data) + _ENTRY_BYTES)
        if self._folder is None:
            return
        # All are handed over before anything is awaited: what is stored meanwhile comes after.
        work = [] if is_on_disk else [self._on_thread(partial(self._folder.write, tenant, blob))]
        work += [
            self._on_thread(partial(self._folder.delete, lost.tenant, lost.value))
            for lost in evicted
        ]
        for done in work:
            await done

    def _on_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Lets the thread end after what it has begun."""
        self._thread.shutdown(wait=False)


class Folder:
    """Blobs as files. Blocks. Its failures are logged and cost no more than the restart."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, tenant: str, blob: Blob) -> None:
        """Writes a blob; whoever reads sees all of it or none."""
        path = self._path(tenant, blob)
        partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_bytes(blob.data)
            partial.replace(path)
        except OSError as error:
            logger.warning("a blob could not be kept on disk: errno %s", error.errno)
            partial.unlink(missing_ok=True)

    def find(self, tenant: str, digest: str) -> Blob | None:
        """Returns a tenant's blob if it is there and whole."""
        if not _DIGEST.fullmatch(digest) or not _TENANT.fullmatch(f"t-{tenant}"):
            return None
        name = digest.removeprefix("sha256:")
        for path in (self._root / f"t-{tenant}").glob(f"{name}.*"):
            try:
                stored = self._read(path)
            except OSError:
                continue  # it went meanwhile
            if stored is not None:
                return stored[1]
        return None

    def delete(self, tenant: str, blob: Blob) -> None:
        """Removes a blob's file if it is there."""
        try:
            self._path(tenant, blob).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("a blob could not be removed from disk: errno %s", error.errno)

    def read(self, max_bytes: int) -> list[tuple[str, Blob]]:
        """Returns the newest blobs up to `max_bytes`, oldest first; deletes the others."""
        found: list[tuple[str, Blob]] = []
        files = sorted(self._files(), key=lambda path: (-path.stat().st_mtime_ns, path.name))
        room = max_bytes
        for path in files:
            stored = self._read(path)
            if stored is None or len(stored[1].data) > room:
                path.unlink(missing_ok=True)
                continue
            room -= len(stored[1].data)
            found.append(stored)
        return found[::-1]

    def _files(self) -> Iterator[Path]:
        if self._root.is_dir():
            for folder in self._root.iterdir():
                if _TENANT.fullmatch(folder.name):
                    yield from (path for path in folder.iterdir() if _is_ours(path.name))

    def _read(self, path: Path) -> tuple[str, Blob] | None:
        tenant, name = _TENANT.fullmatch(path.parent.name), _FILE.fullmatch(path.name)
        if tenant is None or name is None:
            return None
        data = path.read_bytes()
        digest = blob_digest(data)
        if digest != f"sha256:{name[1]}":
            return None
        return tenant[1], Blob(digest, data, f"image/{name[4]}", int(name[2]), int(name[3]))

    def _path(self, tenant: str, blob: Blob) -> Path:
        hexadecimal = blob.digest.removeprefix("sha256:")
        kind = blob.media_type.removeprefix("image/")
        size = f"{blob.width_px}x{blob.height_px}"
        return self._root / f"t-{tenant}" / f"{hexadecimal}.{size}.{kind}"


def _is_ours(name: str) -> bool:
    # What else lies in the folder is left alone.
    return _FILE.fullmatch(name) is not None or name.endswith(_PARTIAL)
