"""Where a store lives: a folder, or any URL that TensorStore can open (``gs://``, ``s3://``, …).

Small files (the manifest, the tokenizer, the rejects) go through the same key-value store as the
arrays, so that a store on a bucket is read as one on a disk is.
"""

import functools
import re
from pathlib import Path
from typing import Any

import tensorstore as ts

from teukenjax.errors import UserError

URL = re.compile(r"[a-z0-9]+://.+")
PASSWORD = re.compile(r"[a-z0-9]+://[^/@]*:[^/@]*@")


CACHE_BYTES = 1 << 26  # for the indices of shards, without which each window is two reads
# A server that does not answer is asked again for five minutes: it may be restarting. TensorStore's
# own 32 times are as long as a step may take (``guard.timeout_s``), and a mistyped URL's as well.
RETRIES = {"max_retries": 14, "initial_delay": "1s", "max_delay": "32s"}
SERVERS = ("http", "gcs", "s3")
NO_ANSWER = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # of TensorStore, after all of them


@functools.cache
def context() -> ts.Context:
    """One for the process: ``memory://`` stores live in it, and what was read is shared."""
    retries = {f"{server}_request_retries": RETRIES for server in SERVERS}
    return ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}} | retries)


class Location:
    """A folder or URL, with files below it named by keys such as ``train/de/ids``.

    Attributes:
      path: the folder; none for a URL.
    """

    def __init__(self, where: "str | Path | Location"):
        self._where = str(where).rstrip("/")
        if PASSWORD.match(self._where):
            host = self._where.rsplit("@", 1)[1]
            raise UserError(
                f"…@{host}: a URL with a password would be in every log: give it by the "
                "environment, as the store's provider documents"
            )
        self.path = None if URL.fullmatch(self._where) else Path(self._where)

    def __str__(self) -> str:
        return self._where

    @property
    def name(self) -> str:
        """The last part."""
        return self._where.rsplit("/", 1)[-1]

    def exists(self) -> bool:
        """Whether there is something: a folder or file, or at a URL a manifest."""
        return self.path.exists() if self.path else self.read("manifest.json") is not None

    def read(self, key: str) -> bytes | None:
        """The content of a small file; none when there is no such file."""
        try:
            found = self._files().read(key).result()
        except ValueError as error:  # what TensorStore raises for everything
            raise UserError(f"{self}/{key}: cannot be read: {reason(error)}") from None
        return found.value if found.state == "value" else None

    def write(self, key: str, content: bytes) -> None:
        """Writes a small file, so that no reader meets half of it."""
        try:
            self._files().write(key, content).result()
        except ValueError as error:
            raise UserError(f"{self}/{key}: cannot be written: {reason(error)}") from None

    def array(self, key: str) -> dict[str, Any]:
        """What TensorStore needs to open the array at ``key``."""
        # A lost file must not read as zeros, so zeros are stored and absence is an error.
        return {
            "driver": "zarr3",
            "kvstore": self._url(key),
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
            # What was read is not looked at again: an append only adds to what there is.
            "recheck_cached_data": "open",
        }

    def _files(self) -> ts.KvStore:
        try:
            return ts.KvStore.open(self._url(), context=context()).result()
        except ValueError as error:
            raise UserError(f"{self}: cannot be opened: {reason(error)}") from None

    def _url(self, key: str = "") -> str | dict[str, str]:
        if self.path is None:
            return f"{self._where}/{key}"
        return {"driver": "file", "path": f"{self.path.absolute()}/{key}"}


def has_no_answer(error: Exception) -> bool:
    """Whether a server does not answer, rather than says that something is not there."""
    return str(error).startswith(NO_ANSWER)


def reason(error: Exception) -> str:
    """TensorStore's message in one line, without the place in its source."""
    return str(error).split(" [")[0].split("\n")[0]
