"""A proxy in front of the S3 server that fails as networks and gateways do, on demand."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["503", "cut upload", "cut download", "slow download"]
SLOW_SECONDS = 3.0


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        endpoint: where it listens.
        fault: what befalls matching requests; None: nothing.
        key: a request matches if its path ends like this.
        times: how many matching requests it still befalls.
        befallen: how many it did.
    """

    endpoint: str
    fault: Fault | None = None
    key: str = ""
    times: int = 0
    befallen: int = field(default=0)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strike(self, fault: Fault, *, key: str, times: int = 1_000) -> None:
        """Let a fault befall the next requests of a key."""
        self.fault, self.key, self.times, self.befallen = fault, key, times, 0

    def befalls(self, path: str, method: str) -> Fault | None:
        """The fault of this request, which is counted."""
        with self.lock:
            is_write = method in ("PUT", "POST")
            fits = self.fault == "503" or (self.fault == "cut upload") == is_write
            if self.fault is None or not fits or not path.endswith(self.key) or self.befallen >= self.times:
                return None
            self.befallen += 1
            return self.fault


@contextmanager
def faulty_s3(server: str) -> Iterator[Proxy]:
    """Put a proxy before a server, `http://host:port`."""
    target = server.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            fault = proxy.befalls(self.path.partition("?")[0], self.command)
            length = int(self.headers.get("Content-Length") or 0)
            if fault == "cut upload":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fault == "503":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            upstream = http.client.HTTPConnection(target, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            is_head = self.command == "HEAD"
            self.send_header(
                "Content-Length", (answer.getheader("Content-Length") or "0") if is_head else str(len(content))
            )
            self.end_headers()
            upstream.close()
            if is_head:
                return
            if fault in ("cut download", "slow download"):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if fault == "slow download":
                    time.sleep(SLOW_SECONDS)
                self.close_connection = True
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

        def log_message(self, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{listener.server_address[1]}")
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
