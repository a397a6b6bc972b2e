"""The part of a passage that a search shows."""

from __future__ import annotations

import pytest

from lead.config.lists import Bm25
from lead.search.snippet import Marker, one_line


def test_a_snippet_shows_the_words_of_the_query() -> None:
    marker = Marker(Bm25())
    text = "nothing here. " * 50 + "It reads\n\ta CSV-file, quickly." + " nothing there." * 50
    found = marker.snippet("reading the csv files", text, 80)
    assert [part for part, hit in found.parts() if hit] == ["reads", "CSV", "file"]
    assert "".join(part for part, _ in found.parts()) == found.text and len(found.text) <= 84
    assert found.text.startswith("… ") and found.text.endswith(" …") and not found.whole
    whole = marker.snippet("the", "the end")  # a stop word is not marked
    assert whole.whole and whole.parts() == [("the end", False)]
    assert Marker(Bm25(analyser="unicode")).snippet("東京", "京都と東京").parts()[-1] == ("京", True)
    assert marker.snippet("x", "").parts() == []
    assert marker.snippet("x", "y" * 1000, 50).text == "y" * 50 + " …"


@pytest.mark.parametrize(
    ("text", "shown", "whole"),
    [
        ("load ... wait", "load wait", False),
        ("load\nwait", "load wait", True),
        ("title\n=====\nload", "title load", False),
        ("----", "", False),
    ],
)
def test_a_snippet_is_whole_if_only_line_breaks_are_lost(text: str, shown: str, whole: bool) -> None:
    found = Marker(Bm25()).snippet("load", text)
    assert (found.text, found.whole) == (shown, whole)


def test_a_snippet_cannot_speak_to_a_terminal() -> None:
    assert one_line("a\x1b[31mb\r\x07\u202ec\u2028d") == "a [31mb c d"
    assert (
        one_line("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
