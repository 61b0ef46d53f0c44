"""Pages about runs and studies: what stands in them, that they need nothing else, and what is missing is named."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax.reports import gallery, run_report
from cifar_jax.runs.workdir import read_predictions, read_record
from tests import made

DATA = {"train": made.split(160, seed=0), "test": made.split(40, seed=1)}
FIELDS = {"epochs": 2, "batch_size": 16, "data.validation": 40}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    cj.fit(made.recipe(FIELDS), path, data=DATA, progress=False)
    return path


@pytest.fixture(scope="module")
def page(workdir):
    return Page(cj.report(workdir, data=DATA, progress=False).read_text())


def test_a_report_of_a_run_has_all_its_parts(workdir, page):
    for part in (
        "Learning curves", "Confusion matrix", "Reliability", "Map of the embeddings", "The most confident errors",
        "The least confident successes", "Each class: its most typical", "Filters of the first layer",
        "This command repeats the run", "All fields of the recipe", "negative log-likelihood", "macro mean",
    ):  # fmt: skip
        assert part in page.text, part
    run, environment = cj.load_run(workdir), json.loads((workdir / "environment.json").read_text())
    assert f"{run.evaluation.accuracy:.2%} of 40 images" in page.text
    assert f"Python {environment['python']}, jax {environment['packages']['jax']}, jaxlib" in page.text
    assert f"{environment['devices'][0]}" in page.text
    assert run.digests["train"] in page.text
    assert "recipe.json" in page.text
    wrong = int((~read_predictions(workdir, "test").correct).sum())
    assert page.text.count("predicted") < len(page.all("img"))  # alternatives are no text
    errors = [image for image in page.all("img") if ", is " in image["alt"]]
    assert len(errors) >= min(wrong, gallery.SHOWN)


def pictures(text):
    """(pixels, name) of each picture of the galleries."""
    form = r'<li><img src="data:image/png;base64,([^"]+)"[^>]*>(?:(?!</li>).)*<span class="name">([^<]+)</span></li>'
    found = re.findall(form, text)
    return [
        (np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))), html.unescape(name)) for source, name in found
    ]


@pytest.mark.parametrize(("split", "source"), [("test", "test"), ("validation", "train")])
def test_pictures_are_named_by_their_place_in_the_data_set(tmp_path, split, source):
    run = cj.fit(cj.override(made.recipe(FIELDS), {"epochs": 1}), tmp_path, data=DATA, evaluate=split, progress=False)
    shown = pictures(cj.report(run.workdir, data=DATA, progress=False).read_text())
    assert len(shown) > 24
    for pixels, name in shown:
        origin, _, place = name.partition(" ")
        assert origin == source
        np.testing.assert_array_equal(pixels.reshape(8, 8, -1), DATA[source].images[int(place)])


def test_a_page_needs_nothing_from_outside(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert tag not in ("script", "link", "iframe")
    assert "default-src 'none'" in page.all("meta")[2]["content"]


def test_a_page_can_be_read_without_seeing_it(page):
    assert all(image.get("alt") for image in page.all("img"))
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(scrolling["tabindex"] == "0" for scrolling in page.all("div") if scrolling.get("class") == "scroll")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"][1:] for link in page.all("a")}
    assert targets <= set(ids)


def luminance(colour):
    """Relative, of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(workdir, page, mode):
    """A contrast of 4.5 at least (WCAG 2.2, 1.4.3), in both modes."""
    style = re.findall(r":root \{([^}]*)\}", (workdir / "report.html").read_text())[mode]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", style))
    for text in ("ink", "soft", "mark"):
        for ground in ("page", "card"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_figures_take_the_colours_of_the_page(workdir, page):
    text = (workdir / "report.html").read_text()
    assert "#101112" not in text
    assert text.count("currentColor") > 20


def test_the_temperature_is_stored_and_applied(workdir, page):
    temperature = read_record(workdir)["temperature"]
    classifier = cj.load_classifier(workdir)
    assert classifier.temperature == temperature == cj.load_run(workdir).temperature != 1.0
    logits = classifier.logits(DATA["test"].images) / np.float32(temperature)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    expected = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(DATA["test"].images), expected, rtol=1e-5)
    probabilities = cj.predictions(cj.load_run(workdir), data=DATA, progress=False).probabilities
    wrong = probabilities.argmax(-1) != DATA["test"].labels
    shown = run_report.run_report(cj.load_run(workdir), data=DATA, progress=False).galleries[0].pictures[0].text
    assert shown.endswith(f"{probabilities[wrong].max():.0%}")
    before, after = cj.calibrate(cj.load_run(workdir), data=DATA, progress=False)
    assert after.loss <= before.loss
    assert f"{temperature:.3f}" in page.text


def test_a_report_of_a_study_is_its_comparison(tmp_path):
    recipe, changes = made.recipe(FIELDS), [{"model.dropout": 0.3}, {"optimizer.learning_rate": 0.05}]
    table = cj.ablate(recipe, changes, seeds=3, folder=tmp_path / "study", data=DATA, progress=False)
    page = Page(cj.report(tmp_path / "study").read_text())
    for sentence in table.sentences():
        assert sentence in page.text
    assert len(page.all("svg")) == 3
    runs = [tmp_path / "study" / "runs" / name / "seed0" for name in ("base", "dropout=0.3")]
    both = Page(cj.report(runs, tmp_path / "both").read_text())
    assert (tmp_path / "both" / "report.html").exists()
    assert "McNemar" in both.text


def test_figures_are_written_beside_the_page(workdir, tmp_path):
    cj.report(workdir, tmp_path, data=DATA, figures=True, progress=False)
    names = ("confusion_matrix", "learning_curves", "map_of_the_embeddings", "reliability")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    ]
    assert (tmp_path / "figures" / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "report.html").exists()


def test_what_is_missing_is_named(tmp_path):
    """No validation split, no images, no finished training."""
    path = tmp_path / "run"
    cj.fit(made.recipe({**FIELDS, "data.validation": 0}), path, data=DATA, progress=False)
    page = Page(cj.report(path, data=DATA, progress=False).read_text())
    assert "There is no temperature: this run held out no images (data.validation=0)" in page.text
    page = Page(cj.report(path, progress=False).read_text())
    assert "Predictions are missing: " in page.text
    assert "Learning curves" in page.text
    stopping = [lambda event: (_ for _ in ()).throw(KeyError("ended")) if event.step == 7 else None]
    with pytest.raises(KeyError):
        cj.fit(made.recipe(FIELDS), tmp_path / "half", data=DATA, callbacks=stopping, stoppable=True, progress=False)
    page = Page(cj.report(tmp_path / "half", data=DATA, progress=False).read_text())
    assert "The run is not finished: this is the state of its last checkpoint." in page.text


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ({"paths": []}, "there is nothing to report"),
        ({"paths": "nowhere"}, "'nowhere' does not exist"),
        ({"paths": ["a", "b"]}, "a report of several runs needs a folder; give out='reports/NAME'"),
        ({"paths": "nowhere", "embedding": "umap"}, "embedding is 'umap'. Known: none, pca, tsne"),
    ],
)
def test_what_cannot_be_reported_is_refused(call, answer):
    with pytest.raises(cj.InputError, match=re.escape(answer)):
        cj.report(**call)


def test_a_missing_library_is_answered_with_its_command(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(cj.InputError, match=r"reports need Jinja2.*pip install -c constraints.txt -e '.\[report\]'"):
        cj.report(workdir, data=DATA, progress=False)


def test_galleries_choose_by_probability():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45], [0.3, 0.7]], np.float32)
    labels = np.array([0, 1, 1, 0, 0])
    assert gallery.confident_errors(labels, probabilities).tolist() == [4, 1]
    assert gallery.doubtful_successes(labels, probabilities).tolist() == [3, 2, 0]
    typical, hardest = gallery.of_class(labels, probabilities, 0, 2)
    assert (typical.tolist(), hardest.tolist()) == ([0, 3], [4, 3])


def test_filters_are_a_sheet_with_each_in_its_own_range():
    kernel = np.random.RandomState(0).normal(size=(5, 5, 3, 20))
    sheet = gallery.filters(kernel, columns=8)
    assert sheet.shape == (3 * 6 - 1, 8 * 6 - 1, 3)
    second = sheet[:5, 6:11]
    assert (second.min(), second.max()) == (0, 255)


def test_overfitting_is_told_from_where_and_by_how_much():
    line = lambda train, validation: {"train_loss": train, "validation_loss": validation}
    history = [line(1.0, 1.1), line(0.8, 1.0), line(0.5, 1.2)]
    assert run_report.overfitting(history) == (
        "The run overfits from epoch 2 on: the validation loss rises from 1.000 to 1.200 while the training loss goes"
        " from 0.800 to 0.500."
    )
    assert run_report.overfitting(history[:2]).endswith("the run does not overfit.")
    assert run_report.overfitting([line(1.0, None)]) == ""


# What a page says of itself: its width, that of the window, how many parts scroll, the height of the recipe's fields.
PROBE = """<script>
const scrolling = [...document.querySelectorAll(".scroll")].filter(each => each.scrollWidth > each.clientWidth + 1);
const fields = document.querySelector("details > dl").parentElement;
const root = document.documentElement;
const found = [root.scrollWidth, window.innerWidth, scrolling.length, fields.getBoundingClientRect().height];
parent.postMessage(found.map(Math.round).join(" "), "*");
</script>"""


def rendered(text, width, folder):
    """What PROBE finds where the page is `width` pixels wide, in a frame: a window is never below 500."""
    open_policy = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (folder / "page.html").write_text(open_policy.replace("</body>", f"{PROBE}</body>"))
    listener = "<script>onmessage = event => { document.title = event.data }</script>"
    (folder / "frame.html").write_text(
        f"{listener}<iframe src=page.html style='border:0;width:{width}px;height:20000px'></iframe>"
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=1400,900"]
    flags += ["--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *flags, f"file://{folder / 'frame.html'}"]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return tuple(map(int, re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", seen).groups()))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_renders_the_page_without_overflow(width, workdir, page, tmp_path):
    """The page is as wide as the window: only tables and wide figures scroll."""
    whole, shown, scrolling, _ = rendered((workdir / "report.html").read_text(), width, tmp_path)
    assert shown == width
    assert whole <= shown
    assert bool(scrolling) == (width == 390)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
def test_on_paper_nothing_is_hidden(workdir, page, tmp_path):
    """718 pixels are the width of A4 within its margins. Nothing scrolls, and what is closed on the screen is open."""
    text = (workdir / "report.html").read_text()
    assert rendered(text, 718, tmp_path)[3] < 50  # the summary alone
    whole, shown, scrolling, fields = rendered(text.replace("@media print", "@media all"), 718, tmp_path)
    assert (whole, shown, scrolling) == (718, 718, 0)
    assert fields > 500
