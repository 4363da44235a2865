"""The report: an HTML page with everything in it, read as text and in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from recipes import recipe, table

from copra.experiment.outputs import TITLES
from copra.experiment.provenance import read_record
from copra.report.finding import finding
from copra.report.page import COLUMNS, Picture, caption_html, page

MAIN = table(
    recipe("more-cot", accuracy=[0.96, 0.98]),
    recipe("coconut", "width-50", [0.8, 0.9]),
    recipe("coconut", "drop-2", [0.9, 0.97]),
    recipe("pause-as-thought", "drop-2", [0.5, 0.52]),
).assign(seconds_batch_1=[*[0.2, 0.1, 0.3] * 2, *[0.05] * 3, *[float("nan")] * 3])
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>'
RECORD = {"made_by": {"settings": {"name": "</script>"}, "files": ["1"]}}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def write(tmp_path):
    """Writes the page of a table; returns its path."""

    def write(frame=MAIN, **changes) -> Path:
        figure = tmp_path / "figure.svg"
        figure.write_text(SVG)
        named = {
            "config": "task: <sums>\n",
            "commands": ["snakemake --configfile mine.yaml"],
            "versions": ["torch 2", "copra 1", "torch 2"],
            "record": RECORD,
            **changes,
        }
        pictures = [Picture("accuracy_vs_flops", "", figure), Picture("latent_lens", "a@0+b", figure)]
        tables = {"accuracy_vs_flops": frame, "contrasts": frame[["seed"]]}
        (tmp_path / "report.html").write_text(page("mine", tables, pictures, TITLES, **named))
        return tmp_path / "report.html"

    return write


def body(text: str) -> list[list[str]]:
    """The cells of the sortable table."""
    rows = re.findall(r"<tr[^>]*title=.*?</tr>", text, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_it_begins_with_the_finding_and_the_recipes(write):
    text = write().read_text()
    assert f"<h1>{html.escape(finding(MAIN))}</h1>" in text
    assert "200 questions per model, greedy decoding, 2 seeds." in text
    rows = body(text)
    assert [row[:2] for row in rows] == [
        ["dense", "more-cot"],
        ["2 layers", "coconut"],
        ["2 layers", "pause-as-thought"],
        ["width 0.5", "coconut"],
    ]
    assert rows[0][2].startswith("97.0 [")
    assert rows[0][3:5] == ["96.0 98.0", "1.000"]
    assert [row[-1] for row in rows] == ["200.0", "50.0", "-", "200.0"]


def test_rows_of_the_front_are_marked(write):
    frame = MAIN.assign(pareto=MAIN["method"] == "coconut")
    marked = re.findall(r'<tr class=front title="([^"]+)"', write(frame).read_text())
    assert marked == ["llama+cot+drop-2+coconut", "llama+cot+width-50+coconut"]


def test_it_has_sections_of_figures_and_tables_with_captions(write):
    text = write().read_text()
    urls = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)">', text)
    assert [alt for alt, _ in urls] == ["Accuracy against FLOPs", "The likeliest tokens of latents: a@0+b"]
    assert all(base64.b64decode(data).decode() == SVG for _, data in urls)
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Recipes",
        "The likeliest tokens of latents",
        "The contrasts between recipes",
        "How this was made",
    ]
    assert text.count("How to read this") == 3
    assert "task: &lt;sums&gt;" in text
    assert "snakemake --configfile mine.yaml" in text
    assert "copra 1, torch 2." in text


def test_columns_that_were_not_measured_are_left_out(write):
    text = write(MAIN.drop(columns="seconds_batch_1")).read_text()
    assert "ms per answer" in COLUMNS
    assert "ms per answer" not in text


def test_names_are_text(write):
    bad = MAIN.replace({"method": {"coconut": "<img src=x>"}})
    text = write(bad).read_text()
    assert "<img src=x>" not in text
    assert body(text)[1][1] == "<img src=x>"


def test_its_record_can_be_read(write):
    assert read_record(write()) == RECORD["made_by"]


def test_a_run_without_finding_has_a_plain_heading(write):
    text = write(table(recipe("more-cot", accuracy=0.96))).read_text()
    assert "<h1>Accuracy against FLOPs per answer</h1>" in text
    assert "1 seed." in text
    assert "One seed supports no claim" in text


@pytest.mark.parametrize("kind", sorted(TITLES))
def test_each_kind_has_a_caption(kind):
    assert len(re.sub("<[^>]+>", "", caption_html(kind))) > 100
    assert "system-message" not in caption_html(kind)


# The number of a column that is clicked, the rows after it, and how that column is sorted.
CLICKS = [
    (2, "0132", "descending"),
    (2, "2310", "ascending"),
    (1, "3102", "ascending"),  # equal ones keep their order
    (7, "3012", "descending"),
    (7, "1302", "ascending"),
    (0, "0123", "ascending"),
]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_sorts_and_asks_the_network_for_nothing(write, tmp_path):
    """Row 2 has no latency, so it comes last both ways."""
    file = write()
    script = f"""<script>{{
    const rows = () => [...document.querySelectorAll("table.main tbody tr")];
    rows().forEach((row, place) => row.id = place);
    const heads = [...document.querySelectorAll("table.main th")];
    const seen = {[place for place, _, _ in CLICKS]}.map(place => {{
        heads[place].querySelector("button").click();
        const sorted = heads.filter(head => head.ariaSort !== "none");
        return [rows().map(row => row.id).join(""), sorted.map(head => [head.cellIndex, head.ariaSort])];
    }});
    window.onload = () => {{
        const requests = performance.getEntriesByType("resource").map(each => each.name);
        const images = [...document.images].map(image => image.naturalWidth);
        document.title = JSON.stringify([seen, requests.filter(name => !name.startsWith("data:")), images]);
    }};
    }}</script>"""
    file.write_text(file.read_text().replace("</body>", f"{script}</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (title,) = re.findall("<title>(.*?)</title>", done.stdout)
    seen, requests, images = json.loads(html.unescape(title))
    assert seen == [[order, [[place, direction]]] for place, order, direction in CLICKS]
    assert (requests, images) == ([], [4, 4])
