"""A proxy on loopback in front of an HTTP server that damages answers, and stops requests at a chosen moment.

How often answers are damaged may be changed while it runs, so that a burst of trouble is a few lines of a test.
`hold` stops the next request that fits, at its beginning, in the middle of its body, or when the server has answered
and the client does not know it yet: the moments at which a client can be killed.
"""

import http.client
import random
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
EXPIRED = (
    b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
LISTED = re.compile(rb"<(Contents|CommonPrefixes)>.*?<(?:Key|Prefix)>(.*?)</.*?</\1>", re.DOTALL)
HELD_S = 60.0  # a held request is released after this time
TIMEOUT_S = 60.0

Moment = Literal["begin", "middle", "end"]


class Held:
    """The next request of a method whose path fits a pattern, stopped at a moment.

    Attributes:
        reached: set when a request is being held.
        path: of that request, with its query.
    """

    def __init__(self, method: str, pattern: str, moment: Moment):
        self.reached = threading.Event()
        self.path = ""
        self.method, self.moment = method, moment
        self._pattern = re.compile(pattern)
        self._released = threading.Event()
        self._dropped = False

    def fits(self, method: str, path: str) -> bool:
        """Whether a request is the one to hold."""
        return not self.reached.is_set() and method == self.method and self._pattern.search(path) is not None

    def release(self, *, drop: bool = False) -> None:
        """Let the request go on, or with `drop` cut its connections to client and server; also if none came yet."""
        self._dropped = drop
        self._released.set()

    def wait(self) -> bool:
        """Waits in the request's thread for `release`; returns whether the request continues."""
        self._released.wait(HELD_S)
        return not self._dropped


class FaultyProxy:
    """Passes requests on, or damages them with the probabilities that it has at that time.

    Attributes:
        url: where to send requests.
        busy: probability of the answer 503 to a request that the server never sees.
        cut: probability that a GET is answered with half a body.
        reset: probability that the connection is closed without an answer, before or after the server acted.
        delay_s: longest time by which an answer is put off; the time is random.
        expired: whether every PUT is refused because the credentials have expired.
        refused, cut_short, resets: how many requests were damaged so far.
        late: what the next `num_late` listings do not show: a test of a whole key.
    """

    def __init__(
        self, target: str, *, busy: float = 0.0, cut: float = 0.0, reset: float = 0.0, delay_s: float = 0.0, seed: int
    ):
        self.busy, self.cut, self.reset, self.delay_s = busy, cut, reset, delay_s
        self.refused = self.cut_short = self.resets = 0
        self.expired = False
        self.late: Callable[[str], bool] = lambda key: False
        self.num_late = 0
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._held: list[Held] = []
        self._host = urlsplit(target).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._answer(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it; requests that are held are dropped."""
        self.calm()
        self._server.shutdown()
        self._server.server_close()

    def calm(self) -> None:
        """Stops damaging and holding requests."""
        self.busy = self.cut = self.reset = self.delay_s = 0.0
        self.num_late = 0
        with self._lock:
            held, self._held = self._held, []
        for one in held:
            one.release(drop=True)

    def hold(self, method: str, pattern: str, moment: Moment) -> Held:
        """Stop the next request of this method whose decoded path and query contain the regular expression."""
        held = Held(method, pattern, moment)
        with self._lock:
            self._held.append(held)
        return held

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            fate, before, delay_s = self._chance.random(), self._chance.random() < 0.5, self._chance.random()
            held = self._held_by(handler)
        threading.Event().wait(delay_s * self.delay_s)
        if fate < self.busy:
            self.refused += 1
            _send(handler, 503, {"Content-Type": "application/xml"}, BUSY)
            return
        if self.expired and handler.command == "PUT":
            _send(handler, 403, {"Content-Type": "application/xml"}, EXPIRED)
            return
        fate -= self.busy
        reset = fate < self.reset
        self.resets += reset
        answer = None if reset and before else self._pass_on(handler, body, held)
        if answer is None or reset:
            handler.close_connection = True
            return
        status, headers, data = answer
        data = self._as_listed(handler, data)
        cut = fate - self.reset < self.cut and handler.command == "GET" and len(data) > 1
        self.cut_short += cut
        _send(handler, status, headers, data, len(data) // 2 if cut else None)

    def _as_listed(self, handler: BaseHTTPRequestHandler, data: bytes) -> bytes:
        """The answer to a listing without what is listed late."""
        with self._lock:
            if self.num_late == 0 or handler.command != "GET" or "list-type=2" not in handler.path:
                return data
            self.num_late -= 1
        return LISTED.sub(lambda found: b"" if self.late(unquote(found[2].decode())) else found[0], data)

    def _held_by(self, handler: BaseHTTPRequestHandler) -> Held | None:
        path = unquote(handler.path)
        for held in self._held:
            if held.fits(handler.command, path):
                self._held.remove(held)
                held.path = path
                return held
        return None

    def _pass_on(
        self, handler: BaseHTTPRequestHandler, body: bytes, held: Held | None
    ) -> tuple[int, dict[str, str], bytes] | None:
        """The server's answer; None where there is none or the request was dropped."""
        upstream = http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)
        try:
            if held is not None and held.moment == "begin" and not _stop(held):
                return None
            # the signature covers the Host header, so it is passed on unchanged
            upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() != "expect":
                    upstream.putheader(name, value)
            half = len(body) // 2
            upstream.endheaders(body[:half])
            if held is not None and held.moment == "middle" and not _stop(held):
                return None
            upstream.send(body[half:])
            answer = upstream.getresponse()
            data = answer.read()
            if held is not None and held.moment == "end" and not _stop(held):
                return None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            upstream.close()
        skip = {"connection", "transfer-encoding"}
        return answer.status, {name: value for name, value in answer.getheaders() if name.lower() not in skip}, data


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is not an error of the proxy's."""


def _stop(held: Held) -> bool:
    held.reached.set()
    return held.wait()


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
