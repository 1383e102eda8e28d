"""A small HTTP server that speaks the part of Kubeflow's v2beta1 API that `storyrec.kubeflow` uses."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class KubeflowServer:
    """What the server holds; tests change runs to play the cluster's part."""

    url: str = ""
    multi_user: bool = False
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    """States that a run takes, one each time it is read."""
    errors: int = 0
    """How many of the next requests are answered with 503."""
    tokens: set[str | None] = field(default_factory=set)

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """One request; refuses a namespace where it is not multi-user, as the real one does."""
        if self.errors:
            self.errors -= 1
            return 503, {"message": "upstream is away"}
        if ("namespace" in query or "namespace" in body) and not self.multi_user:
            return 400, {"message": "In single-user mode, the namespace must be empty"}
        match method, path.removeprefix("/apis/v2beta1"):
            case "GET", "/healthz":
                return 200, {"multi_user": True} if self.multi_user else {}
            case "GET", "/experiments":
                if self.multi_user and "namespace" not in query:
                    return 400, {"message": "a namespace is needed"}
                return 200, {"experiments": self._named(self.experiments, query)}
            case "POST", "/experiments":
                self.experiments.append({**body, "experiment_id": f"experiment-{len(self.experiments)}"})
                return 200, self.experiments[-1]
            case "GET", "/runs":
                found = self._named(self.runs, query)
                return 200, {"runs": [run for run in found if run["experiment_id"] == query["experiment_id"]][::-1]}
            case "POST", "/runs":
                now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
                self.runs.append({**body, "run_id": f"run-{len(self.runs)}", "state": "PENDING", "created_at": now})
                return 200, self.runs[-1]
        found = re.fullmatch(r"/apis/v2beta1/runs/([^/:]+)(:terminate)?", path)
        run = next((run for run in self.runs if found and run["run_id"] == found[1]), None)
        if run is None or found is None:
            return 404, {"message": f"there is no {path}"}
        if found[2]:
            run["state"] = "CANCELING"
            return 200, {}
        if self.states:
            run["state"] = self.states.pop(0)
        return 200, run

    @staticmethod
    def _named(entries: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
        (predicate,) = json.loads(query["filter"])["predicates"]
        assert (predicate["operation"], predicate["key"]) == ("EQUALS", "display_name")
        return [entry for entry in entries if entry["display_name"] == predicate["string_value"]]


@contextmanager
def kubeflow_server() -> Iterator[KubeflowServer]:
    """A server on a free port, until the block ends."""
    state = KubeflowServer()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.tokens.add(self.headers.get("Authorization"))
            status, answer = state.answer(self.command, parts.path, query, json.loads(content or b"{}"))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
