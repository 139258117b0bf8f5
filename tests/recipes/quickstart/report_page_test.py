"""The report: codes, goals, the images a conversation is about, and no markup from a model's output."""

import shutil

import numpy as np
import pytest

from seed_jax.files import write_text
from seed_jax.recipes.quickstart.measure import Example, Measurements
from seed_jax.recipes.quickstart.report_page import write_report
from seed_jax.recipes.recipe import provenance

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IMAGE = np.zeros((48, 48, 3), np.uint8)
EXAMPLES = (
    Example("rebuild", (IMAGE,), "", "", IMAGE, True, tuple(range(32))),
    Example("describe", (IMAGE,), "what?", "<script>", None, False),
    Example("talk", (), "draw it", "", IMAGE, True),
    Example("talk", (IMAGE,), "What colour is it?", "red", None, False),
)
NUMBERS = {
    "caption_held_out_whole": 0.95,  # goal 90 %
    "answer_held_out_all": 0.93,  # goal 95 %
    "rebuilt_whole": 0.5,  # goal 88 %
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "qformer").mkdir()
    write_text(workdir / "qformer/metrics.jsonl", '{"step": 10, "loss": 4.5}\n{"step": 20, "loss": 1.25}\n')
    return write_report(workdir, Measurements(NUMBERS, EXAMPLES), {"qformer": 1.0}, provenance(7, 1234.5))


def test_model_output_is_escaped(page):
    text = page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_goals_are_judged_by_symbol_and_word(page):
    text = page.read_text()
    for verdict in ("✓ reached", "≈ near miss", "✗ missed"):
        assert text.count(verdict) == 1
    assert "95.0%" in text


def test_an_image_is_shown_with_its_codes_and_a_question_with_its_image(page):
    text = page.read_text()
    assert all(f">{code}</span>" in text for code in range(32))
    question = text[text.index("draw it") : text.index("What colour is it?")]
    assert question.count("data:image/webp;base64,") == 2  # the answer before, and the image asked about


def test_a_run_is_identified_and_its_curves_have_axes(page):
    text = page.read_text()
    assert "seed 7" in text
    assert "1234 s" in text
    for label in (">4.5</text>", ">1.25</text>", ">10</text>", ">20</text>"):
        assert label in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_fits_phones_in_both_color_schemes(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM)
        grounds = set()
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": 430, "height": 900}, color_scheme=scheme)
            tab.goto(page.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == 430
            grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        browser.close()
