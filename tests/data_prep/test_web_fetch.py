"""Against a server on this machine that does what hostile servers do."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("resiliparse", reason="extra `prep`")

from rntp_data_prep.web.crawled import read_page
from rntp_data_prep.web.fetch import MAX_HOPS, Fetched, Fetcher, Limits
from rntp_data_prep.web.links import MAX_LINKS, links
from rntp_data_prep.web.urls import Allowed

Answer = tuple[int, dict[str, str], bytes]


class _Server(BaseHTTPRequestHandler):
    answers: dict[str, Any]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        found = self.answers.get(self.path, (404, {}, b""))
        if callable(found):
            with contextlib.suppress(OSError):
                found(self)
            return
        status, headers, body = found
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(answers: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (_Server,), {"answers": answers, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    finally:
        server.shutdown()
        server.server_close()


HTML = {"Content-Type": "text/html; charset=utf-8"}


def page(text: str) -> Answer:
    return 200, HTML, text.encode()


def moved(target: str) -> Answer:
    return 302, {"Location": target}, b""


def fetcher(root: str, waited: list[float] | None = None, **limits: Any) -> Fetcher:
    settings = {"delay_s": 0.0, "page_s": 60.0, "page_bytes": 10_000, **limits}
    wait = time.sleep if waited is None else waited.append
    return Fetcher(Allowed([f"{root}/"]), Limits("test", **settings), wait=wait)


def outcome(found: Fetched) -> tuple[str, int]:
    return found.page.reason, found.requests


def test_a_page_is_decoded_and_redirects_inside_are_followed() -> None:
    answers = {
        "/a": moved("b"),
        "/b": page("<p>Grüße</p>"),
        "/t": (200, {"Content-Type": "text/plain"}, b"x"),
    }
    with serving(answers) as (root, asked):
        get = fetcher(root).get
        found = get(f"{root}/a")
        assert (found.page.url, found.page.html) == (f"{root}/b", "<p>Grüße</p>")
        assert (found.requests, found.num_bytes) == (2, len("<p>Grüße</p>".encode()))
        assert get(f"{root}/t").page.text == "x"
        assert asked == ["/robots.txt", "/a", "/b", "/t"]


def test_redirects_out_of_the_list_and_without_end_are_refused() -> None:
    with serving({"/": page("never")}) as (other, never_asked):
        answers = {
            "/away": moved(f"{other}/"),
            "/file": moved("file:///etc/passwd"),
            "/one": moved("/two"),
            "/two": moved("/one"),
            **{f"/chain{n}": moved(f"/chain{n + 1}") for n in range(20)},
        }
        with serving(answers) as (root, _):
            get = fetcher(root).get
            assert outcome(get(f"{root}/away")) == ("not_allowed", 1)
            assert outcome(get(f"{root}/file")) == ("not_allowed", 1)
            assert outcome(get(f"{other}/")) == ("not_allowed", 0)
            assert outcome(get(f"{root}/one")) == ("redirect_loop", 2)
            assert outcome(get(f"{root}/chain0")) == ("redirect_loop", MAX_HOPS + 1)
        assert never_asked == []


def test_robots_and_delays_are_obeyed() -> None:
    robots = b"User-agent: *\nDisallow: /private/\nCrawl-delay: 7\n"
    answers = {"/robots.txt": (200, {}, robots), "/a": page("a"), "/private/b": page("b")}
    with serving(answers) as (root, asked):
        waited: list[float] = []
        get = fetcher(root, waited).get
        assert outcome(get(f"{root}/private/b")) == ("robots", 0)
        assert outcome(get(f"{root}/a")) == ("", 1)
        assert outcome(get(f"{root}/a")) == ("", 1)
        assert asked == ["/robots.txt", "/a", "/a"]
        # robots.txt itself was asked for before its delay was known.
        (pause,) = waited
        assert 6 < pause <= 7
        assert outcome(fetcher(root, waited, max_delay_s=5.0).get(f"{root}/a")) == ("robots", 0)
    with serving({"/robots.txt": (503, {}, b""), "/a": page("a")}) as (root, asked):
        assert outcome(fetcher(root).get(f"{root}/a")) == ("robots", 0)
        assert asked == ["/robots.txt"]


def test_huge_slow_and_other_bodies_end_within_their_limits() -> None:
    def endless(handler: _Server, pause_s: float, piece: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        while True:
            handler.wfile.write(piece)
            time.sleep(pause_s)

    def slow_head(handler: _Server) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(b"X: y\r\n")
            time.sleep(0.05)

    def cut(handler: _Server) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")

    answers = {
        "/huge": lambda handler: endless(handler, 0.0, b"x" * 5000),
        "/said": (200, {**HTML, "Content-Length": "999999999"}, b"x"),
        "/slow": lambda handler: endless(handler, 0.05, b"x"),
        "/head": slow_head,
        "/cut": cut,
        "/zip": (200, {**HTML, "Content-Encoding": "gzip"}, b"\x1f\x8b"),
        "/png": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
    }
    with serving(answers) as (root, _):
        get = fetcher(root, failures=99).get
        found = {path: get(f"{root}{path}") for path in answers if path not in ("/slow", "/head")}
        begin = time.monotonic()
        for path in ("/slow", "/head"):
            # robots.txt first, without a clock to end it on a busy machine.
            patient = fetcher(root)
            patient.get(f"{root}/none")
            patient._limits = dataclasses.replace(patient._limits, page_s=1.0)
            found[path] = patient.get(f"{root}{path}")
        assert time.monotonic() - begin < 20  # both would go on for ever
        assert {path: f.page.reason for path, f in found.items()} == {
            "/huge": "page_too_large",
            "/said": "page_too_large",
            "/slow": "too_slow",
            "/head": "too_slow",
            "/cut": "unreachable",
            "/zip": "not_html",
            "/png": "not_html",
        }
        assert 10_000 < found["/huge"].num_bytes <= 10_000 + (1 << 14)
        assert found["/said"].num_bytes == 0


def test_a_host_that_fails_again_and_again_is_left_alone() -> None:
    answers = {f"/{n}": (500, {}, b"") for n in range(5)} | {"/fine": page("fine")}
    with serving(answers) as (root, asked):
        get = fetcher(root, failures=3).get
        reasons = [outcome(get(f"{root}/{n}")) for n in range(5)]
        assert reasons == [("http_status", 1)] * 3 + [("host_failed", 0)] * 2
        assert len(asked) == 1 + 3
        get = fetcher(root, failures=3).get
        for path in ("/0", "/1", "/fine", "/2", "/3", "/fine"):
            found = get(f"{root}{path}")
        assert found.page.html == "fine"
    assert outcome(fetcher("http://127.0.0.1:9").get("http://127.0.0.1:9/")) == ("robots", 0)


def test_links_of_a_page() -> None:
    html = (
        '<base href="/x/"><a href="a.html#one">1</a><a href="a.html#two">2</a>'
        '<a rel="nofollow ugc" href="b.html">3</a><a href="javascript:1">4</a><a>5</a>'
        '<a href="//other.org/">6</a><a href="/p.html">itself</a>'
    )
    assert links(html, "http://h/p.html") == ["http://h/x/a.html", "http://other.org/"]
    assert links('<meta name="Robots" content="noindex, NoFollow">' + html, "http://h/p.html") == []
    # Nested as they are, a tree of these would take minutes.
    many = "".join(f"<A HREF = '{n}&amp;m' >" for n in range(5000))
    found = links(many, "http://h/")
    assert (len(found), found[1]) == (MAX_LINKS, "http://h/1&m")
    assert links('<!-- <a href="x"> --><script>"<a href=x>"</script>', "http://h/") == []


def test_a_crawled_folder_is_read_and_nothing_beside_it(tmp_path: Path) -> None:
    site, root = tmp_path / "site", "http://h/docs/"
    (site / "a").mkdir(parents=True)
    (site / "a" / "index.html").write_text("<p>index")
    (site / "b.txt").write_text("plain")
    (site / "c.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret.html").write_text("secret")
    (site / "link.html").symlink_to(tmp_path / "secret.html")
    found = {
        name: read_page(root, site, f"{root}{name}", 100).page
        for name in ("a/", "b.txt", "c.png", "link.html", "%2e%2e/secret.html", "none.html")
    }
    assert found["a/"].html == "<p>index"
    assert found["b.txt"].text == "plain"
    assert [found[name].reason for name in list(found)[2:]] == [
        "not_html",
        "not_allowed",
        "not_allowed",
        "not_found",
    ]
    assert read_page(root, site, f"{root}b.txt", 4).page.reason == "page_too_large"
