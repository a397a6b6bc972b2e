"""The page of `lead serve`: who may ask, what is answered, and how it looks and works in a real browser."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from browsing import browser, chromium, dark_phone, texts, until
from searchable import HOSTILE, HOSTILE_ID, HOSTILE_QUERY, Searchable

from lead import cli
from lead.search.server import HEADERS, is_here, make_server
from lead.search.systems import Collection


@pytest.fixture(scope="module")
def port(searchable: Searchable) -> Iterator[int]:
    """Where lead_cb and BM25 are served, which finds the hostile passage."""
    found = searchable.find("lead_cb")
    with make_server(found, [found.system(), found.against("bm25")], "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


__all__ = ["chromium"]  # a fixture
Ask = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def ask(port: int) -> Ask:
    """Asks the server: status, headers, body."""

    def call(path: str, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()

    return call


def test_the_page_and_its_parts_travel_with_headers_that_allow_nothing_else(ask: Ask) -> None:
    for path, kind in (("/", "html"), ("/style.css", "css"), ("/script.js", "javascript"), ("/icon.svg", "svg")):
        status, headers, body = ask(path)
        assert status == 200 and kind in headers["Content-Type"] and "http://" not in body.replace("http://www.w3", "")
        assert all(headers[name] == value for name, value in HEADERS.items())
        assert ask(path, "HEAD")[2] == ""
    assert "https://" not in ask("/")[2] and "<script>" not in ask("/")[2] and "style=" not in ask("/")[2]
    assert ask("/../systems.py")[0] == ask("/favicon.ico")[0] == 404
    assert ask("/about", "POST")[0] == 501


def test_only_this_machine_may_ask(ask: Ask) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "localhost.evil.example"):
        assert ask("/about", Host=host)[0] == 403, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "192.168.1.7:8000"):
        assert ask("/about", Host=host)[0] == 200, host
    assert is_here("search.example.org:8000", "0.0.0.0", "Search.example.org.")  # noqa: S104 (--allow-host)
    assert ask("/search?q=a", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask("/search?q=a", Sec_Fetch_Site="same-origin")[0] == 200
    assert ask("/?q=a", Sec_Fetch_Site="cross-site")[0] == 200  # a link to an answer, in a mail


def test_what_is_no_address_and_a_page_that_was_closed_are_no_error(
    ask: Ask, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET http://[/ HTTP/1.1\r\n\r\n")
        assert b" 400 " in connection.recv(100)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset when closed
        connection.sendall(b"GET /about HTTP/1.1\r\n")
    assert ask("/about")[0] == 200
    assert capfd.readouterr().err == ""


def test_answers_are_those_of_the_runs_with_judgements(ask: Ask, searchable: Searchable) -> None:
    about = json.loads(ask("/about")[2])
    assert [system["name"] for system in about["systems"]] == ["lead_cb", "bm25"]
    assert about["systems"][1]["about"] == "BM25, searches all 161 passages"
    assert len(about["queries"]) == 23 and HOSTILE_QUERY in about["queries"]  # 13 test queries, 10 dev
    for qid, query in list(searchable.queries().items())[-2:]:
        answer = json.loads(ask(_url(query, 30))[2])
        for run, found in zip(("lead_cb", "bm25"), answer["lists"], strict=True):
            expected = searchable.ranked(run)[qid][:30]
            assert [hit["id"] for hit in found["results"]] == [pid for pid, _ in expected]
            np.testing.assert_allclose([h["score"] for h in found["results"]], [s for _, s in expected], rtol=1e-4)
    answer = json.loads(ask(_url(HOSTILE_QUERY, 100))[2])
    assert answer["judged"] and answer["relevant"] == 1
    for found in answer["lists"]:
        judged = {hit["id"]: hit["relevant"] for hit in found["results"]}
        expected = {"p0": False, HOSTILE_ID: True}
        assert judged == {pid: expected.get(pid) for pid in judged}
    assert not json.loads(ask(_url("nobody judged this", 5))[2])["judged"]


def _url(query: str, k: int) -> str:
    return "/search?" + urlencode({"q": query, "k": k})


@pytest.mark.parametrize(
    "asked", ["", "q=", "q=%20", "q=a&k=0", "q=a&k=101", "q=a&k=00000001099", "q=a&k=%D9%A3", "q=" + "a" * 2001]
)
def test_bad_questions_are_refused(ask: Ask, asked: str) -> None:
    status, _, body = ask(f"/search?{asked}")
    assert status == 400 and "1 to 100" in json.loads(body)["error"]


def test_mistakes_are_one_line(searchable: Searchable, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--port", str(port)], "give another --port"),
        (["--port", "70000"], "1 to 65535"),
        (["--against", "bm52"], "did you mean 'bm25'"),
        (["--against", "lead_de"], "make it with: lead run tiny/lead_de"),
        (["--host", "no.such.host.invalid"], "give another --host"),
    ):
        assert cli.main(["serve", "tiny/lead_cb", *arguments, *searchable.options]) == 1
        said_here = capsys.readouterr()
        assert not said_here.out and said_here.err.count("\n") == 1 and said in said_here.err


# --- a real browser --------------------------------------------------------------------------------------------------
@pytest.fixture
def page(chromium: Any, port: int) -> Iterator[Any]:
    """The browser on the page. At the end nothing may have been said on its console."""
    chromium.get_log("browser")
    chromium.get(f"http://127.0.0.1:{port}/")
    until(chromium, "return document.querySelectorAll('#examples button').length == 4")
    yield chromium
    assert chromium.get_log("browser") == []


def _search(page: Any, query: str) -> None:
    """Type a query and press Enter, as people do."""
    from selenium.webdriver.common.keys import Keys

    field = page.switch_to.active_element
    assert field.get_attribute("id") == "query"  # ready to type in, without a click
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(query, Keys.ENTER)
    until(page, "return document.querySelectorAll('section').length == 2 && !document.querySelector('[aria-busy]')")


@browser
def test_two_systems_side_by_side_and_every_text_as_it_is(page: Any) -> None:
    _search(page, HOSTILE_QUERY)
    assert texts(page, "h2")[0].startswith("lead_cb") and texts(page, "h2")[1] == "bm25"
    assert len(texts(page, "section:first-child li")) == 10
    assert page.title == f"{HOSTILE_QUERY} · lead"
    assert page.find_element("id", "query").get_attribute("value") == HOSTILE_QUERY
    assert "1 relevant passage." in texts(page, "#status")[0]
    assert texts(page, "section:last-child h3")[0] == HOSTILE_ID
    assert texts(page, "section:last-child details p")[0] == HOSTILE
    assert {"stride", "script", "owned", "\u0639\u0631\u0628\u064a"} <= set(texts(page, "section:last-child mark"))
    assert not page.execute_script(
        "return document.querySelectorAll('#lists script, #lists img, #lists b, #owned').length"
    )
    assert page.title != "owned"
    left, right = (page.find_elements("css selector", "section")[n].rect for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


@browser
def test_judged_passages_are_marked_and_addresses_can_be_shared(page: Any, port: int) -> None:
    page.find_element("css selector", "#examples button").click()
    until(page, "return document.querySelectorAll('section').length == 2")
    query = page.find_element("id", "query").get_attribute("value")
    assert all("relevant" in text for text in texts(page, "section > p"))
    for list_ in page.execute_script("return [...document.querySelectorAll('section')].map((s) => s.innerText)"):
        assert ("relevant at rank" in list_) == ("✓ relevant" in list_)
    address, shown = page.current_url, texts(page, "h3")
    page.get(address)
    until(page, "return document.querySelectorAll('section').length == 2")
    assert texts(page, "h3") == shown and page.title == f"{query} · lead"
    page.back()
    page.get(f"http://127.0.0.1:{port}/?q=")
    until(page, "return document.querySelectorAll('#examples button').length == 4")
    assert texts(page, "section") == []


@browser
def test_on_a_phone_in_the_dark_and_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    with dark_phone(page):
        page.find_element("id", "query").click()
        _search(page, "stride of an array")
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
        above, below = (page.find_elements("css selector", "section")[n].rect for n in (0, 1))
        assert above["y"] + above["height"] <= below["y"]
        colours = page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        ink, back = (sum(map(int, c[4:-1].split(","))) for c in colours)
        assert ink > 500 and back < 150
        page.find_element("css selector", "a.jump").send_keys(Keys.ENTER)
        until(page, "return document.querySelector('#system1').getBoundingClientRect().top < innerHeight")
        assert len(texts(page, "section")) == 2


@browser
def test_what_a_screen_reader_says(page: Any) -> None:
    _search(page, HOSTILE_QUERY)
    for node in page.find_elements("css selector", "input, button, section, summary, a"):
        assert node.accessible_name or not node.is_displayed()
    assert page.find_element("id", "query").accessible_name == "Query"
    names = [node.accessible_name for node in page.find_elements("css selector", "section")]
    assert names[0].startswith("lead_cb") and names[1] == "bm25"
    assert page.execute_script("return document.documentElement.lang") == "en"
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((h) => +h.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


@browser
def test_an_answer_that_does_not_come_is_said(chromium: Any, searchable: Searchable) -> None:
    found = searchable.find("lead_cb")
    server = make_server(found, [found.system(), found.against("bm25")], "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    chromium.get(f"http://127.0.0.1:{server.server_port}/")
    until(chromium, "return document.querySelectorAll('#examples button').length == 4")
    server.shutdown()
    thread.join()
    server.server_close()
    chromium.execute_script("go('array')")
    until(chromium, "return document.querySelector('#status').className == 'error'")
    assert "is `lead serve` still running?" in texts(chromium, "#status")[0]


@pytest.mark.parametrize(
    ("run", "teacher"), [("best", "pretrained_teacher"), ("lead_best", "teacher_cb"), ("student_more", None)]
)
def test_the_teacher_of_a_run_or_of_what_it_started_from(run: str, teacher: str | None) -> None:
    assert Collection.find(f"pydocs/{run}").teacher == teacher
