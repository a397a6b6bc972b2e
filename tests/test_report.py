"""`lead report`: what the page says, that its numbers are those of `lead table`, and how it works in a real browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import browser, chromium, dark_phone, emulated, texts
from reported import MEASURES, make_reported
from searchable import HOSTILE, HOSTILE_ID, HOSTILE_QUERY, Searchable
from test_table import result

from lead import cli
from lead.evaluation.stats import holm, paired_test
from lead.report.report import report
from lead.report.table import difference, number, read_result, table
from lead.report.training import read_log
from lead.store.tables import read_json

__all__ = ["chromium"]  # a fixture
CONFIG = Path(__file__).resolve().parents[1] / "config" / "config.yaml"


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, searchable: Searchable, tiny_model: Path, tiny_collection: Path
) -> Searchable:
    """Results, their report, and the speed of two runs."""
    here = make_reported(tmp_path_factory.mktemp("reported"), searchable, tiny_model, tiny_collection)
    for run in ("lead_cb", "bm25"):
        assert cli.main(["speed", f"tiny/{run}", *here.options]) == 0
    assert cli.main(["report", "tiny", *here.options]) == 0
    return here


@pytest.fixture(scope="module")
def html(project: Searchable) -> str:
    return (project.folder / "report.html").read_text(encoding="utf-8")


def rows(project: Searchable) -> dict[str, dict[str, str]]:
    """The main table's rows by run, as its file has them."""
    text = (project.folder / "report" / "quality" / "runs.csv").read_text(encoding="utf-8")
    return {row["run"]: row for row in csv.DictReader(text.splitlines())}


def test_its_numbers_are_those_of_lead_table(project: Searchable) -> None:
    found = rows(project)
    paths = [project.folder / f"{run}.json" for run in found]
    printed = table(paths, ["student_more"]).splitlines()
    header = re.split(r" {2,}", printed[2])
    assert header == ["run", "RR@10 [95% interval]", "R@20", "R@60", "vs student_more"]
    for line in printed[4 : 4 + len(found)]:
        run, first, *others, versus = re.split(r" {2,}", line.strip())
        assert [first, *others] == [found[run][name] for name in header[1:-1]]
        assert versus == found[run]["vs student_more in RR@10"]
    means = [read_result(path).metrics["RR@10"]["mean"] for path in paths]
    assert means == sorted(means, reverse=True) and len(means) == 4


def test_there_is_one_family_of_tests(project: Searchable, html: str) -> None:
    values = {run: read_result(project.folder / f"{run}.json").values("RR@10")[1] for run in rows(project)}
    base = values.pop("student_more")
    corrected = holm([paired_test(each, base) for each in values.values()])
    for (run, each), p in zip(values.items(), corrected, strict=True):
        assert rows(project)[run]["vs student_more in RR@10"] == difference(float(each.mean() - base.mean()), p)
    assert html.count("paired t-test") == 1 and "Holm-corrected over the 3 tests of this table" in html
    assert len(re.findall(r"p[=<]\.\d\d\d|p=1\.000", html)) <= 3 + 1  # one a test, and that of the verdict
    assert "never made" not in html  # the appendix has the rows that exist


def test_what_a_run_costs_is_what_was_measured(project: Searchable) -> None:
    found, speed = rows(project), read_json(project.folder / "speed" / "lead_cb.json")
    assert speed["query_ms"]["low"] <= speed["query_ms"]["median"] <= speed["query_ms"]["high"]
    assert float(found["lead_cb"]["a query ms"]) == pytest.approx(speed["query_ms"]["median"], rel=0.01)
    assert float(found["lead_cb"]["texts a second"].replace(",", "")) == pytest.approx(
        speed["texts_per_second"], rel=0.01
    )
    assert found["teacher_cb"]["a query ms"] == "not measured"
    from lead.models.base import LayeredModel

    for run in ("lead_cb", "teacher_cb"):
        model = LayeredModel.load(project.folder / "models" / run)
        assert found[run]["model"].endswith(f"{model.n_layers} layers")
        assert found[run]["parameters millions"] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"
        assert found[run]["dimensions"].split()[0] == "32"
    size = (project.folder / "embeddings" / "lead_cb" / "passages.parquet").stat().st_size
    assert found["lead_cb"]["index MB"] == f"{size / 1e6:.1f}"
    assert found["teacher_cb"]["index MB"] == "none reranks teacher_de"
    assert found["bm25"]["parameters millions"] == "" and found["bm25"]["a query ms"] != "not measured"


def test_the_methods_name_real_layers_losses_and_steps(html: str) -> None:
    (told,) = re.findall(r"<dt>lead_cb</dt><dd>(.*?)</dd>", html, re.S)
    assert "A dual encoder, starts from student, learns from teacher_cb (a ColBERT, 4 layers)" in told
    assert "layer loss (eq. 8), response loss (eq. 9)" in told and "2 pairs of layers (drawn anew every step)" in told
    assert "12 steps" in told and "learning rate 0.001" in told and "trained jointly" in told
    assert "161 passages" in html and "13 judged test queries" in html


def test_curves_are_those_of_the_metrics(project: Searchable) -> None:
    log = read_log(project.folder / "metrics" / "lead_cb.jsonl")
    assert log.steps == list(range(1, 13)) and log.dev_steps == [0, 6, 12] and len(log.weights) == 12
    assert set(log.losses) == {"lyr", "rep", "stu", "tch", "total"} and set(log.dev) == {"student", "teacher"}
    lines = [json.loads(x) for x in (project.folder / "metrics" / "lead_cb.jsonl").read_text().splitlines()]
    told = [x["student_entropy"] for x in lines if "loss" in x]
    assert log.entropies["student, final scores"] == [entropies[-1] for entropies in told]
    assert log.entropies["student, layers"] == pytest.approx([np.mean(entropies[:-1]) for entropies in told])
    svg = ET.parse(project.folder / "report" / "training" / "pairs-lead_cb.svg").getroot()
    written = [float(node.text) for node in svg.iter() if node.text and re.fullmatch(r"0\.\d\d", node.text)]
    assert sum(written) == pytest.approx(1.0, abs=0.05)  # shares of the layer loss


def test_a_cut_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    line = {"step": 1, "loss": {"stu": 1.0, "total": 1.0}}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 2, "lo', encoding="utf-8")
    assert read_log(tmp_path / "a.jsonl").steps == [1]


def test_every_figure_is_a_file_of_its_own_in_both_colours(project: Searchable) -> None:
    files = sorted((project.folder / "report").rglob("*.svg"))
    names = "size time queries stages graph loss-lead_cb entropies-lead_cb weights-lead_cb pairs-lead_cb"
    assert {file.stem for file in files} == set(names.split())
    for file in files:
        root = ET.parse(file).getroot()
        assert root.get("role") == "img" and root.get("aria-label") and "prefers-color-scheme: dark" in file.read_text()
        assert not re.search(r"#0000[01]\d|http://(?!www\.w3\.org)", file.read_text())


def test_mistakes_are_one_line(project: Searchable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ["--config", str(project.config), "--overrides", f"{{results: {tmp_path}}}"]
    for words, says in (
        (["report", "tinny", *project.options], "did you mean 'tiny'"),
        (["report", "tiny", "--baseline", "bm52", *project.options], "did you mean 'bm25'"),
        (["report", "tiny", *empty], "lead run tiny"),
        (["speed", "tiny", *empty], "lead run tiny"),
        (["speed", "tiny/lead_de", *project.options], "lead run tiny/lead_de"),
    ):
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1


def test_without_models_lists_or_metrics_there_is_a_page_all_the_same(project: Searchable, tmp_path: Path) -> None:
    folder = tmp_path / "made here" / "tiny"
    shutil.copytree(project.folder / "per_query", folder / "per_query")
    for run in ("bm25", "lead_cb"):
        shutil.copy(project.folder / f"{run}.json", folder)
    options = ["--config", str(project.config), "--overrides", f"{{results: {folder.parent}}}"]
    assert cli.main(["report", "tiny", *options]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "not measured" in text and "No training has left metrics here" in text and "vs bm25" in text


def test_without_test_queries_it_is_about_the_trainings(project: Searchable, tmp_path: Path) -> None:
    folder = tmp_path / "made here" / "tiny"
    for name in ("metrics", "timings"):
        shutil.copytree(project.folder / name, folder / name)
    options = ["--config", str(project.config), "--overrides", f"{{results: {folder.parent}}}"]
    assert cli.main(["report", "tiny", *options]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "id='loss-lead_cb'" in text and "id='stages'" in text and "paired t-test" not in text


def test_results_begin_with_what_people_look_for(project: Searchable) -> None:
    keys = list(json.loads((project.folder / "lead_cb.json").read_text(encoding="utf-8")))
    assert keys[:4] == ["metrics", "queries", "confidence", "measures"]
    assert list(read_json(project.folder / "lead_cb.json")["metrics"]) == MEASURES
    text = (project.folder / "lead_cb.json").read_text(encoding="utf-8").splitlines()
    assert text[2].strip() == '"RR@10": {' and text[3].strip().startswith('"mean"')


def test_k_strategies_and_seeds(tmp_path: Path) -> None:
    folder, rng = tmp_path / "results" / "demo", np.random.default_rng(0)
    runs = [
        "student_more",
        "rd_cb",
        "lead_cb",
        "lead_cb-s2",
        "lead_cb_k1",
        "lead_cb_k2",
        "lead_cb_last",
        "lead_cb_skip",
    ]
    values = {run: rng.random(50) for run in runs}
    for run, each in [*values.items(), ("of_the_past", rng.random(50))]:
        result(folder, run, each, ["RR@10", "AP@100", "R@100"])
    report(CONFIG, "demo", overrides={"results": str(folder.parent)})
    text = (folder / "report.html").read_text(encoding="utf-8")
    for name, expected in (("k", ["1", "2", "3"]), ("strategy", {"random", "last", "skip"})):
        (figure,) = re.findall(f"<figure id='{name}'>(.*?)</figure>", text, re.S)
        shown = re.findall(r"<th scope='row'>(.*?)</th>", figure)
        assert shown == expected or set(shown) == expected
    found = list(csv.DictReader((folder / "report" / "quality" / "runs.csv").read_text(encoding="utf-8").splitlines()))
    (lead,) = (row for row in found if row["run"] == "lead_cb")
    means = [values[run].mean() for run in ("lead_cb", "lead_cb-s2")]
    assert lead["seeds"] == "1-2"
    assert lead["RR@10 [95% interval]"].startswith(f"{number(np.mean(means))} ± {number(np.std(means, ddof=1))} [")


# --- a real browser --------------------------------------------------------------------------------------------------
@pytest.fixture
def page(chromium: Any, project: Searchable) -> Iterator[Any]:
    """The browser on the page, from its file. At the end nothing was said on its console, or asked of a network."""
    chromium.get_log("browser"), chromium.get_log("performance")
    chromium.get((project.folder / "report.html").as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked and not [url for url in asked if url.startswith(("http", "ws", "//"))]


@browser
def test_texts_are_texts(page: Any) -> None:
    assert page.title == "tiny · LEAD report"
    assert not page.execute_script(
        "return document.querySelectorAll('script, img, #owned, section b, section i').length"
    )
    assert "4DE \u2192 2DE <b>student</b>" in texts(page, "#paper ~ section tbody th")


@browser
def test_a_hostile_query_and_its_passage_are_shown_as_they_are(
    project: Searchable, tmp_path: Path, chromium: Any
) -> None:
    """BM25 finds the passage, the student does not: it is among the largest losses."""
    out = tmp_path / "against bm25.html"
    assert cli.main(["report", "tiny", "--baseline", "bm25", "--out", str(out), *project.options]) == 0
    chromium.get(out.as_uri())
    assert HOSTILE_QUERY in texts(chromium, ".ends h4") and chromium.title == "tiny · LEAD report"
    assert any(HOSTILE_ID in text and "bm25: rank 1" in text for text in texts(chromium, ".ends dt"))
    shown = next(text for text in texts(chromium, ".ends dd") if text.startswith(HOSTILE[:100]))
    assert "\x1b" not in shown and "\ufffd[31m" in shown  # HTML holds no control characters
    assert not chromium.execute_script("return document.querySelectorAll('script, img, #owned').length")
    assert chromium.get_log("browser") == []


@browser
def test_gains_and_losses_come_with_their_queries_and_passages(page: Any, project: Searchable) -> None:
    queries, cards = project.queries(), texts(page, ".ends h4")
    assert cards and set(cards) <= set(queries.values())
    assert all("rank" in text or "not found" in text for text in texts(page, ".ends dt") if text.startswith("relevant"))


@browser
def test_on_a_phone_in_the_dark_nothing_sticks_out(page: Any) -> None:
    with dark_phone(page):
        page.refresh()
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth && innerWidth == 360")
        ink, back = page.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map((c) => "
            "c.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b, 0))"
        )
        assert ink > 500 and back < 150
        label = page.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
        assert sum(map(int, re.findall(r"\d+", label)[:3])) > 500  # figures turn light too


CONTRAST = """
const numbers = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
const linear = (x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4
const light = (c) => numbers(c).map(linear).reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0)
const back = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor
    if (colour.startsWith('rgb(')) return colour
  }
  return 'rgb(255, 255, 255)'
}
const kinds = 'p, h1, h2, h3, h4, td, th, dt, dd, a, small, summary, figcaption, code, span, svg text'
return [...document.querySelectorAll(kinds)].map((node) => {
  const style = getComputedStyle(node), ink = node.closest('svg') ? style.fill : style.color
  const [high, low] = [light(ink), light(back(node))].sort((x, y) => y - x)
  return [(high + 0.05) / (low + 0.05), node.tagName, node.textContent.slice(0, 30), ink, back(node)]
}).filter(([ratio]) => !(ratio >= 4.5))
"""


@browser
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_all_texts_have_contrast(page: Any, colours: str) -> None:
    with emulated(page, colours=colours):
        assert page.execute_script(CONTRAST) == []


@browser
def test_what_a_screen_reader_says(page: Any) -> None:
    for node in page.find_elements(
        "css selector", "svg[role=img], [role=region], summary, a, nav, section[aria-labelledby]"
    ):
        assert node.accessible_name or not node.is_displayed(), node.get_attribute("outerHTML")[:200]
    assert page.execute_script("return document.documentElement.lang") == "en"
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    assert len(page.find_elements("css selector", "main")) == len(page.find_elements("css selector", "header")) == 1
    for table_ in page.find_elements("css selector", "table"):
        assert table_.find_elements("css selector", "th[scope=col]")
    figures = page.find_elements("css selector", "figure")
    assert figures and all(figure.find_elements("css selector", "details table td") for figure in figures)


@browser
def test_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.find_element("css selector", "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the content"
    links = page.find_elements("css selector", "nav a")
    for link in links:
        assert page.execute_script("return !!document.querySelector(arguments[0])", f"#{link.get_property('hash')[1:]}")
    links[-1].send_keys(Keys.ENTER)
    assert page.execute_script("return document.querySelector('#paper').getBoundingClientRect().top < innerHeight")
    summary = page.find_element("css selector", "figure summary")
    summary.send_keys(Keys.ENTER)
    assert page.execute_script("return document.querySelector('figure details').open")
    page.find_element("css selector", ".main-table").send_keys(Keys.ARROW_RIGHT)  # it can be scrolled


@browser
def test_printed_it_is_black_on_white_and_fits(page: Any) -> None:
    with emulated(page, "print", "dark", width=720, height=1000, mobile=False):
        beyond = (
            "return [...document.querySelectorAll('body *')]"
            ".filter((n) => n.getBoundingClientRect().right > innerWidth + 1).map((n) => n.outerHTML.slice(0, 200))"
        )
        assert page.execute_script(beyond) == []
        style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ink, back = (sum(map(int, re.findall(r"\d+", c)[:3])) for c in page.execute_script(style))
        assert ink < 150 and back == 3 * 255
        assert not page.find_element("css selector", "nav").is_displayed()
