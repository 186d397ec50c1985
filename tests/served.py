"""A data server: a folder over HTTP with byte ranges, as buckets serve it."""

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def served(folder: Path, port: int = 0) -> Iterator[int]:
    """Serves ``folder`` on a port of this machine, 0 for any, until the block ends."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content, wanted = path.read_bytes(), self.headers.get("Range")
        self.send_response(206 if wanted else 200)
        if wanted:
            first, last = (int(x) if x else None for x in wanted.removeprefix("bytes=").split("-"))
            size = len(content)
            first, last = (size - last, size - 1) if first is None else (first, last)
            last = min(size - 1 if last is None else last, size - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            content = content[first : last + 1]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return self.wfile.write(content)

    def log_message(self, *words):
        pass
