"""A proxy on loopback in front of an HTTP server that refuses some answers and cuts others short."""

import http.client
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyProxy:
    """Passes requests on; with probability `busy` it answers 503, with probability `cut` it sends half a body.

    Attributes:
        url: where to send requests.
        refused, cut_short: how many answers were spoilt so far.
    """

    def __init__(self, target: str, *, busy: float, cut: float, seed: int):
        self.refused = 0
        self.cut_short = 0
        self.busy = busy
        self.cut = cut
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._host = urlsplit(target).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._answer(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            fate = self._chance.random()
        if fate < self.busy:
            self.refused += 1
            self._send(handler, 503, {"Content-Type": "application/xml"}, BUSY)
            return
        upstream = http.client.HTTPConnection(self._host, timeout=30)
        try:
            # the signature covers the Host header, so it goes on as it came
            upstream.request(handler.command, handler.path, body or None, dict(handler.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
        except OSError:
            handler.close_connection = True
            return
        finally:
            upstream.close()
        skip = {"connection", "transfer-encoding"}
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in skip}
        cut = fate < self.busy + self.cut and handler.command == "GET" and len(data) > 1
        self.cut_short += cut
        self._send(handler, answer.status, headers, data, len(data) // 2 if cut else None)

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, sent: int | None = None
    ) -> None:
        headers = {name: value for name, value in headers.items() if name.lower() not in ("date", "server")}
        if handler.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(data))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data[:sent])
        if sent is not None:
            handler.close_connection = True
