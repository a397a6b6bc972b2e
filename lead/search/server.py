"""`lead serve`: a page on which two systems answer the same query, from the standard library's HTTP server.

It answers only requests that name this machine (a host of this list, or an address), so that no page of another site
can read the answers under a name of its own (DNS rebinding). Texts travel as JSON; the page never reads them as HTML.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lead.errors import LeadError
from lead.search.snippet import Marker
from lead.search.systems import Collection, System
from lead.search.terminal import answer

log = logging.getLogger("lead")

PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/script.js": ("script.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
QUERY, SHOWN, MOST = 2000, 20_000, 100  # characters of a query and of a passage, passages of a list: at most
OFFERED = 300  # queries of the collection that the page suggests


class Answers:
    """What the page asks for, as values for JSON."""

    def __init__(self, collection: Collection, systems: Sequence[System]) -> None:
        """`systems`: those that are compared, in the order of the page."""
        self.collection, self.systems = collection, systems
        self.marker = Marker(collection.job.dataset.settings.bm25)
        self.passages = collection.passages
        self.one = threading.Lock()  # a query at a time: times are those of a query alone

    def about(self) -> dict[str, Any]:
        """The dataset, the systems, and queries to try."""
        known = [query for query in self.collection.queries if len(query) <= QUERY]
        return {
            "dataset": self.collection.name,
            "systems": [{"name": system.name, "about": system.about} for system in self.systems],
            "queries": known[:: -(-len(known) // OFFERED)] if known else [],
        }

    def search(self, query: str, k: int) -> dict[str, Any]:
        """The best k passages of each system, and which of them are judged for the query."""
        with self.one:
            judged = self.collection.judged(query)
            lists = []
            for system in self.systems:
                found = answer(system, self.passages, query, k)
                results = []
                for hit in found.hits:
                    snippet = self.marker.snippet(query, hit.text)
                    more = {"snippet": snippet.parts(), "whole": snippet.whole, "relevant": judged.get(hit.id)}
                    results.append(vars(hit) | more | {"text": cut(hit.text)})
                lists.append({"milliseconds": round(1000 * found.seconds, 1), "results": results})
        return {"query": query, "relevant": sum(judged.values()), "judged": bool(judged), "lists": lists}


def cut(text: str) -> str:
    """A passage as the page shows it: its first characters, and how many there are.

    >>> cut("a text"), cut("x" * 30_000)[19_998:]
    ('a text', 'xx … (20,000 of 30,000 characters)')
    """
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({SHOWN:,} of {len(text):,} characters)"


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests: the page, /about and /search?q=..&k=.."""

    timeout = 30  # seconds in which a request must have come
    server_version, sys_version = "lead", ""

    def __init__(self, answers: Answers, names: Sequence[str], *arguments: Any) -> None:
        """`names`: the address or name that the server listens at, and others that it is reached by."""
        self.answers, self.names = answers, names
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer a request."""
        try:
            url = urlsplit(self.path)
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", b"this is no address\n")
            return
        if not is_here(self.headers.get("Host", ""), *self.names):
            said = b"this name is not one of this machine's; if it is, start: lead serve --allow-host NAME\n"
            self._send(HTTPStatus.FORBIDDEN, "text/plain", said)
        elif url.path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"not from another site\n")
        elif url.path in PAGE:
            name, kind = PAGE[url.path]
            self._send(HTTPStatus.OK, kind, files("lead.search").joinpath("page", name).read_bytes())
        elif url.path == "/about":
            self._json(HTTPStatus.OK, self.answers.about())
        elif url.path == "/search":
            self._search(parse_qs(url.query))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")

    do_HEAD = do_GET

    def _search(self, asked: dict[str, list[str]]) -> None:
        query, k = asked.get("q", [""])[0].strip(), asked.get("k", ["10"])[0]
        if not query or len(query) > QUERY or not (k.isascii() and k.isdigit() and len(k) < 9 and 1 <= int(k) <= MOST):
            said = f"q: 1 to {QUERY:,} characters; k: 1 to {MOST}"
            self._json(HTTPStatus.BAD_REQUEST, {"error": said})
            return
        try:
            self._json(HTTPStatus.OK, self.answers.search(query, int(k)))
        except LeadError as e:
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(e)})

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), **HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""


def is_here(host: str, *names: str) -> bool:
    """Whether a Host header names this machine: an IP address, localhost, its own name, or one of these.

    >>> is_here("127.0.0.1:8000", "127.0.0.1"), is_here("[::1]:8000", "::1"), is_here("evil.example:8000", "127.0.0.1")
    (True, True, False)
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if name in ("localhost", socket.gethostname().lower(), *(known.lower().rstrip(".") for known in names)):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def make_server(
    collection: Collection, systems: Sequence[System], host: str, port: int, names: Sequence[str] = ()
) -> ThreadingHTTPServer:
    """A server that listens already. `names`: others that it is reached by. Raises LeadError if it cannot."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of a page that was closed before its answer came."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    if not 0 <= port <= 65535:
        raise LeadError(f"--port {port}: give 1 to 65535, or 0 for any that is free")
    try:
        return Server((host, port), partial(Handler, Answers(collection, systems), [host, *names]))
    except OSError as e:
        remedy = "give another --port" if e.errno == errno.EADDRINUSE else "give another --host or --port"
        raise LeadError(f"cannot listen at {host}, port {port}: {e.strerror or e}; {remedy}") from e


def serve(collection: Collection, systems: Sequence[System], host: str, port: int, names: Sequence[str] = ()) -> None:
    """Listen until Ctrl-C. Arguments as of `make_server`. Raises LeadError if it cannot."""
    with make_server(collection, systems, host, port, names) as server:
        shown = f"[{host}]" if ":" in host else host
        if not is_loopback(host):
            log.warning("--host %s: whoever can reach this machine can search here, and read the passages", host)
        print(f"{systems[0].name} and {systems[1].name} on {collection.name}: http://{shown}:{server.server_port}")
        print("Ctrl-C ends it.", file=sys.stderr)
        sys.stdout.flush()
        server.serve_forever()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
