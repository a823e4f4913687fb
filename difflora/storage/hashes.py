"""SHA-256 of whole files, kept on this machine until a file changes: models are too large to read in every run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import FileError

_MOST = 4096  # files
_CHUNK = 1 << 22
# Seconds. A file that was written just now may be written again without a change of its time.
_SETTLED = 3.0


class ContentHashes:
    """Hashes of files by path, size and time of the last change.

    file        where they are stored for the next start, with hashed paths only. None: not stored
    """

    def __init__(self, file: Path | None = None):
        self._file = file
        self._known: dict[str, tuple[int, int, str]] | None = None

    def of(self, path: Path, progress: Callable[[int, int], None] | None = None) -> str:
        """The SHA-256 of a file's bytes, in hexadecimal.

        progress    called with (done, total) bytes; may raise to cancel
        raises      FileError if the file cannot be read
        """
        name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        try:
            before = path.stat()
            state = (before.st_size, before.st_mtime_ns)
            known = self._load().get(name)
            if known and known[:2] == state:
                return known[2]
            digest, done = hashlib.sha256(), 0
            with open(path, "rb", buffering=0) as file:
                while block := file.read(_CHUNK):
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(done, max(done, before.st_size))
            after = path.stat()
        except (OSError, ValueError) as error:
            raise FileError(
                f"{path.name}: cannot be read ({getattr(error, 'strerror', None) or 'its name is not valid'})."
            ) from error
        sha256 = digest.hexdigest()
        if (after.st_size, after.st_mtime_ns) == state and abs(time.time() - after.st_mtime) > _SETTLED:
            self._keep(name, (*state, sha256))
        return sha256

    def _load(self) -> dict[str, tuple[int, int, str]]:
        if self._known is None:
            self._known = {}
            # A damaged cache file counts as empty.
            with suppress(OSError, ValueError, TypeError, AttributeError, UnicodeError):
                if self._file:
                    for name, (size, modified, sha256) in json.loads(self._file.read_text("utf-8")).items():
                        if isinstance(size, int) and isinstance(modified, int) and len(sha256) == 64:
                            self._known[name] = (size, modified, sha256)
        return self._known

    def _keep(self, name: str, entry: tuple[int, int, str]) -> None:
        # Two servers of one machine may share the file: what the other one has read counts here, too.
        own, self._known = self._load(), None
        known = self._load()
        known.update(own)
        known.pop(name, None)
        known[name] = entry
        while len(known) > _MOST:
            known.pop(next(iter(known)))
        if self._file is None:
            return
        # If it cannot be written, the next start reads the files again: no reason to fail.
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, made = tempfile.mkstemp(dir=self._file.parent, prefix=".hashes-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(known, file)
                os.replace(made, self._file)
            except BaseException:
                with suppress(OSError):
                    os.unlink(made)
                raise
