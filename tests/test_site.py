"""The static site: built once, warnings are errors; every link, picture and formula is there."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from kdlab import distillers, losses

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FETCHED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page points at: links that one may follow, files that it fetches, ids, pictures."""

    def __init__(self, path):
        super().__init__()
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.links, self.fetched, self.ids, self.pictures = [], [], set(), []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if found.get(FETCHED.get(tag)):
            self.fetched.append(found[FETCHED[tag]])
        if tag == "img":
            self.pictures.append(found.get("alt") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "site"
    call = [sys.executable, ROOT / "tools" / "build_site.py", "-o", folder]
    run = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.resolve(): Page(path) for path in site.rglob("*.html")}


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_site
    import sphinx_parts

    return SimpleNamespace(site=build_site, sphinx=sphinx_parts)


def of(pages, site, name):
    return pages[(site / name).resolve()]


def test_nothing_is_fetched_from_another_host(site, pages):
    fetched = [a for page in pages.values() for a in page.fetched if urlsplit(a).netloc]
    assert fetched == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)
    assert not any(re.search(r"<script[^>]*mathjax", page.text, re.I) for page in pages.values())


def test_every_link_leads_somewhere(pages):
    missing, followed = [], 0
    for page in pages.values():
        for address in [*page.links, *page.fetched]:
            parsed = urlsplit(address)
            if parsed.scheme:
                continue
            target = page.path.resolve()
            if parsed.path:
                target = (page.path.parent / unquote(parsed.path)).resolve()
            followed += 1
            anchor = unquote(parsed.fragment)
            known = pages[target].ids if target in pages else {anchor}
            if not target.is_file() or (anchor and anchor not in known):
                missing.append((page.path.name, address))
    assert missing == []
    assert followed > 1000


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_whole(lesson, site, pages):
    notebook, page = nbformat.read(lesson, 4), of(pages, site, f"notebooks/{lesson.stem}.html")
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    assert f"<title>{title} - kdlab</title>" in page.text
    shown = [
        output.metadata.get("image/png", {}).get("alt") or output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert [alt for alt in page.pictures if alt] == [" ".join(words.split()) for words in shown]
    assert "" not in page.pictures
    assert any(alt.startswith("<") and "Explorer" in alt for alt in shown) or "01b" in lesson.stem
    solutions = [c for c in notebook.cells if "solution" in c.metadata.get("tags", [])]
    assert page.text.count("Show the solution") == len(solutions)
    prose = re.sub(r"<(pre|code|annotation|script).*?</\1>", "", page.text, flags=re.S)
    assert not re.search(r"\$|\\frac|\\sum|\\operatorname", prose), "a formula was not drawn"


def test_formulas_are_drawn_by_the_browser(site, pages):
    page = of(pages, site, "notebooks/01_soft_targets.html")
    assert page.text.count('<div class="formula-row"><math') >= 1
    assert page.text.count("<math") > 20


def test_the_api_has_all_public_names_and_their_sources(site, pages):
    page = of(pages, site, "api/losses.html")
    assert {f"kdlab.losses.{n}" for n in losses.__all__ if callable(getattr(losses, n))} <= page.ids
    assert "https://arxiv.org/abs/1503.02531" in page.links
    assert page.text.count(">Source<") > 15
    methods = of(pages, site, "api/distillers.html")
    assert {
        f"kdlab.distillers.{m.__name__}" for m in distillers.available().values()
    } <= methods.ids
    explorers = of(pages, site, "api/explorers.html").text
    assert "**kwargs" not in re.sub("<.*?>", "", explorers)


def test_the_search_finds_words_of_lessons_guides_and_functions(site):
    raw = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(raw.removeprefix("Search.setIndex(").rstrip(";\n ").removesuffix(")"))

    def places(term):
        found = [index[kind].get(term, []) for kind in ("terms", "titleterms")]
        lists = [numbers if isinstance(numbers, list) else [numbers] for numbers in found]
        return {index["docnames"][n] for numbers in lists for n in numbers}

    assert {"notebooks/01_soft_targets", "api/losses"} <= places("temperatur")
    assert "docs/troubleshooting" in places("network")
    assert places("nosuchword") == set()


def test_formulas(parts):
    drawn = parts.sphinx.mathml(r"\big(\frac{a}{b}\big) \dots", block=True)
    assert "<mfrac>" in drawn and "…" in drawn and 'display="block"' in drawn
    with pytest.raises(Exception, match="nosuchcommand"):
        parts.sphinx.mathml(r"\nosuchcommand")


def test_docstrings_are_tidied(parts):
    lines = ["The length |x| of `map`s, ``a | b``.", "Source: One,", "arXiv:1.", "", "More."]
    parts.sphinx.tidy_docstring(None, "function", "f", None, None, lines)
    assert lines == [
        r"The length \|x\| of `map`\ s, ``a | b``.",
        "",
        ":Source: One,",
        "   arXiv:1.",
        "",
        "More.",
    ]


def test_a_picture_needs_words(parts, tmp_path):
    png = nbformat.from_dict({"metadata": {}, "data": {"image/png": "AAAA"}})
    with pytest.raises(ValueError, match="without an alt text"):
        parts.site.picture(png, tmp_path / "p.png")
    png.metadata = {"image/png": {"alt": "a [b] *c*"}}
    assert parts.site.picture(png, tmp_path / "p.png") == r"![a \[b\] \*c\*](pictures/p.png)"
