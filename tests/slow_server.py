"""An HTTP server on loopback that can be told not to answer, to answer a byte at a time, or to send clients away."""

import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class SlowServer(ThreadingHTTPServer):
    """Serves a folder.

    Args:
        folder: that is served.

    Attributes:
        mood: "quick", "silent", "dripping", or an address that every request is redirected to.
        hung: set once a request waits.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.mood = os.fspath(folder), "quick"
        self.hung, self.over = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "SlowServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.shutdown()
        super().__exit__(*error)


class _Handler(SimpleHTTPRequestHandler):
    server: SlowServer

    def __init__(self, request, address, server):
        super().__init__(request, address, server, directory=server.folder)

    def do_GET(self):
        if not self._is_odd():
            super().do_GET()

    def do_HEAD(self):
        if self.server.mood == "dripping" or not self._is_odd():
            super().do_HEAD()

    def log_message(self, *_):
        pass

    def _is_odd(self) -> bool:
        mood = self.server.mood
        if mood == "quick":
            return False
        if mood not in ("silent", "dripping"):
            self.send_response(302)
            self.send_header("Location", mood)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True
        if mood == "dripping":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
        self.server.hung.set()
        while not self.server.over.wait(0.05):
            if mood == "dripping":
                self.wfile.write(b"x")
                self.wfile.flush()
        return True
