"""The page of a run, attention over any text, and both as a browser shows them."""

import base64
import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import sacrebleu
import toys

from t2t import checkpoint, experiment, storage
from t2t import run as runs
from t2t.data.prepare import Sizes, prepare
from t2t.data.task import Pair
from t2t.errors import UserError
from t2t.experiment import override
from t2t.metrics import brackets
from t2t.report import attention, html, page, pictures, samples
from t2t.sharding import unboxed
from t2t.trees import bracketed, leaves, parse

HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed=2'><!-- cat"
SOURCES = [
    "ten cat sun red old",
    "sea map ice ten",
    HOSTILE,
    "ice ice cat sun sea",
    "red old sea",
    "map ten cat red sun",
]
OUTPUTS = ["old red sun cat ten", "ten map ice sea", "<b>bold</b> &amp; cat", "sea sun cat", "sea old", "sun red map"]
REFERENCES = [
    "old red sun cat ten",
    "ten ice map sea",
    HOSTILE,
    "sea sun cat ice ice",
    "sea old red",
    "sun red cat ten map",
]
STEPS = [10, 20, 30, 40]
SCORE = {"score": 61.72, "signature": "nrefs:1|case:<mixed>", "low": 60.5, "high": 62.25}


def weights_of(tree):
    """Random ones."""
    rng, shapes = np.random.default_rng(0), unboxed(checkpoint.abstract_params(tree))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


def folder_of(folder, tree, lines, scores):
    """A run folder that was never trained: random weights, and the rest as a run writes it."""
    run = runs.Run(folder)
    sizes = Sizes(tree.model.vocab_size, tree.model.target_vocab_size)
    runs.begin(run, tree, prepare(tree.task, sizes, lambda _: None), "2 x TestChip (cpu)", 0)
    checkpoint.save_params(run.checkpoints, 40, weights_of(tree))
    rows = [
        {"step": step, "split": "train", "loss": 40 / step, "perplexity": 300 / step, "tokens": 512}
        | {"tokens_per_second": 100.0 * step, "learning_rate": step / 1e5}
        for step in STEPS
    ]
    rows.append({"step": 40, "split": "dev", "loss": 1.3125, "perplexity": 4.0625, "tokens": 64})
    storage.write(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    summary = {"split": "test", "perplexity": 4.1875, "scores": scores, "checkpoints": [40]}
    summary["decoding"] = dataclasses.asdict(tree.decoding)
    texts = dict(zip(("sources", "hypotheses", "references"), lines, strict=True))
    runs.write_evaluation(run, "test-step40", texts, summary)
    return run


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    tree = override(toy, {"train_steps": 40, "decoding.beam": 2, "decoding.extra_length": 4})
    scores = {"sacrebleu": SCORE, "chrf": {**SCORE, "score": 70.125}}
    return folder_of(tmp_path_factory.mktemp("runs") / "mine", tree, (SOURCES, OUTPUTS, REFERENCES), scores)


@pytest.fixture(scope="module")
def loaded(run):
    """Experiment, vocabulary and weights of the run."""
    _, tree, vocabulary = runs.load(run.folder)
    return tree, vocabulary, checkpoint.load_params(run, tree)[0]


@pytest.fixture(scope="module")
def written(run, registered):
    """The page of the run."""
    return page.write([run.folder], None, None, pytest.fail)


@pytest.fixture(scope="module", autouse=True)
def registered(toy):
    known = {**experiment.registered(), "reversal": toy}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "registered", lambda: known)
        yield


def content(path):
    """The JSON inside of a page."""
    found = re.findall(r'<script type="application/json" id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def weights_on_page(view):
    shape = view["layers"], view["heads"], len(view["queries"]), len(view["keys"])
    return np.frombuffer(base64.b64decode(view["weights"]), np.uint8).reshape(shape) / 255


# ------------------------------------------------------------------------------ Attention


def expected_weights(tree, params, source, target, monkeypatch):
    """By kind [N H T S], of the plain NumPy model."""
    recorded, plain = [], reference.scaled_dot_product_attention

    def record(*arguments):
        recorded.append(plain(*arguments)[1])
        return plain(*arguments)

    monkeypatch.setattr(reference, "scaled_dot_product_attention", record)
    model = toys.as_reference(params, tree.model)
    memory = reference.encode(model, source)
    encoder, recorded[:] = [*recorded], []
    reference.decode(model, memory, target)
    n, h = tree.model.num_layers, tree.model.num_heads
    by_layer = [recorded[2 * h * i : 2 * h * (i + 1)] for i in range(n)]
    found = {"encoder": [encoder[h * i : h * (i + 1)] for i in range(n)]}
    found |= {"decoder": [each[:h] for each in by_layer], "cross": [each[h:] for each in by_layer]}
    return {kind: np.array(weights) for kind, weights in found.items()}


def test_weights_are_those_of_the_plain_model(loaded, monkeypatch):
    tree, vocabulary, params = loaded
    pairs = [Pair("ten cat sun", "sun cat"), Pair("sea map ice ten old red", "red old ten ice")]
    for pair, found in zip(pairs, attention.of_pairs(*loaded, pairs), strict=True):
        ((source,), (target,)) = vocabulary.encode([pair])
        expected = expected_weights(tree, params, source, target, monkeypatch)
        assert found.views.keys() == expected.keys() == {"encoder", "decoder", "cross"}
        for kind, view in found.views.items():
            np.testing.assert_allclose(view.weights, expected[kind], atol=2e-5)
            np.testing.assert_allclose(weights_on_page(view.facts()), expected[kind], atol=0.5 / 255 + 2e-5)
        said = vocabulary.target.pieces(target)
        assert (found.views["cross"].queries, found.views["cross"].keys) == (said, vocabulary.source.pieces(source))
        assert found.views["decoder"].keys == ["<start>", *said[:-1]]
        assert not np.triu(found.views["decoder"].weights, 1).any()


def test_a_view_is_chosen_by_layer_and_head():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2, 5))
    view = attention.View(list("abcde"), list("wxyz"), weights)
    np.testing.assert_array_equal(view.chosen(2, 1)[0], weights[1, 0])
    np.testing.assert_allclose(view.chosen()[0], weights[2].mean(0))
    assert (view.chosen(2, 1)[1], view.chosen()[1]) == ("layer 2, head 1", "layer 3, mean of 2 heads")
    with pytest.raises(UserError, match="--head 3: the model has 2, counted from 1"):
        view.chosen(1, 3)


@pytest.mark.parametrize("form", ["grid", "lines"])
def test_an_svg_has_each_weight(form):
    weights = np.array([[0.25, 0.75, 0.0], [0.5, 0.125, 0.375]])
    picture = pictures.svg(["<a>", "b"], ["x", "&", "z"], weights, "t", form)
    opacities = re.findall(r'(?:fill|stroke)-opacity="([\d.]+)"', picture)
    assert [float(each) for each in opacities] == weights.ravel().tolist()
    assert "&lt;a&gt;</text>" in picture and "&amp;</text>" in picture


def test_attention_of_the_best_output(t2t, run, loaded, tmp_path):
    found = attention.of_text(*loaded, "ten cat sun")
    output = t2t("translate", run.folder, stdin=b"ten cat sun\n")[1]
    assert found.output == output.rstrip("\n")
    assert t2t("attention", run.folder, "--text", "ten cat sun", "--out", tmp_path / "a.svg")[:2] == (
        0,
        f"{tmp_path / 'a.svg'}\n",
    )
    assert (tmp_path / "a.svg").read_text() == found.svg()
    assert "decoder over source, layer 2, mean of 4 heads" in found.svg()


def test_attention_over_a_given_output(t2t, run, loaded, tmp_path):
    def draw(file, *words):
        text = ["--text", "ten cat sun", "--to", "sun cat ten"]
        code, _, err = t2t("attention", run.folder, *text, "--out", tmp_path / file, *words)
        assert (code, err) == (0, "")
        return (tmp_path / file).read_bytes()

    (found,) = attention.of_pairs(*loaded, [Pair("ten cat sun", "sun cat ten")])
    words = ["--which", "encoder", "--layer", "1", "--head", "3"]
    assert draw("a.svg", *words, "--lines").decode() == found.svg("encoder", 1, 3, "lines")
    assert "encoder over source, layer 1, head 3" in found.svg("encoder", 1, 3)
    draw("a.html", *words)
    kept = content(tmp_path / "a.html")["attention"]
    assert kept["shown"] == {"kind": "encoder", "layer": 1, "head": 3} and kept["weights"] == "step 40"
    assert kept["sentences"] == [found.facts()]


@pytest.mark.parametrize("form", [[], ["--lines"]])
def test_attention_as_png(t2t, run, tmp_path, form):
    pytest.importorskip("matplotlib")
    words = ["--text", "ten $cat$ sun", "--to", "sun", "--out", tmp_path / "a.png"]
    assert t2t("attention", run.folder, *words, *form)[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    {
        "--out a.gif": "--out a.gif: a picture is an .html, .svg or .png file",
        "--out a.html --lines": "--lines is for a picture; a page of .html has lines and heat map",
        "--out a.svg --layer 3": "--layer 3: the model has 2, counted from 1",
        "--out a.svg --head 5": "--head 5: the model has 4, counted from 1",
        "--out a.html --layer 0": "--layer is a whole number, at least 1, not 0",
        "--out a.png": "a .png is drawn by matplotlib: pip install 't2t[png]'; .svg and .html need nothing",
    }.items(),
)
def test_mistakes_are_found_before_decoding(t2t, run, tmp_path, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attention, "decode", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda _: None)
    assert t2t("attention", run.folder, "--text", "ten", *words.split()) == (2, "", f"t2t: {complaint}\n")
    assert not [*tmp_path.iterdir()]


class Blind(nn.Module):
    """A model that has no attention to show."""

    @nn.compact
    def __call__(self, source, target):
        return nn.Embed(17, 17)(target.tokens)


def test_an_architecture_without_attention():
    model = SimpleNamespace(build=Blind)
    params = jax.tree.map(np.zeros_like, Blind().init(jax.random.key(0), None, toys.batch_of([([1], [1])]).target))
    with pytest.raises(UserError, match=r"^Blind shows no attention weights between tokens"):
        attention.sizes(SimpleNamespace(model=model), params)
    with pytest.raises(UserError, match=r"no kind of attention .--which. 'decoder'; did you mean encoder"):
        attention.check({"encoder": (2, 4)}, "decoder", None, None)
    attention.check({"encoder": (2, 4)}, "", 2, 4)


# ------------------------------------------------------------------------------ Samples


def test_differences_leave_the_words_as_they_are():
    rng = np.random.default_rng(1)
    for _ in range(200):
        texts = [" ".join(rng.choice(["a", "b", "c", "<d>"], rng.integers(0, 9))) for _ in range(2)]
        sides = samples.differences(*texts)
        assert [" ".join(part for part, _ in side) for side in sides] == texts
        same = [" ".join(part for part, differs in side if not differs) for side in sides]
        assert same[0] == same[1]
    assert samples.differences("a b c", "a x c") == ([("a", 0), ("b", 1), ("c", 0)], [("a", 0), ("x", 1), ("c", 0)])


def test_ranges_of_length_are_scored_as_a_whole(toy):
    rng = np.random.default_rng(2)
    texts = [[" ".join(rng.choice(toys.WORDS, rng.integers(1, 12))) for _ in range(70)] for _ in range(3)]
    found = samples.facts(samples.rate(toy.task, *texts))
    bins = found["lengths"]["bins"]
    words = [len(text.split()) for text in texts[0]]
    assert sum(each["sentences"] for each in bins) == 70 and bins[0]["low"] == min(words)
    for each in bins:
        rows = [i for i, n in enumerate(words) if each["low"] <= n <= each["high"]]
        score = sacrebleu.corpus_chrf([texts[1][i] for i in rows], [[texts[2][i] for i in rows]]).score
        assert (len(rows), each["score"]) == (each["sentences"], pytest.approx(score, abs=0.005))
    scores = [sacrebleu.sentence_chrf(o, [r]).score for o, r in zip(*texts[1:], strict=True)]
    assert [each["score"] for each in found["worst"]] == pytest.approx(sorted(scores)[:10], abs=0.005)
    assert [each["line"] for each in found["even"]] == [*range(1, 71, 7)]


def random_trees(number, seed):
    rng = np.random.default_rng(seed)
    return [bracketed(toys._sentence(rng)) for _ in range(number)]


def test_trees_are_rated_by_f1(tmp_path):
    gold = random_trees(4, 0)
    output = [line.replace("(NP ", "(VP ", i % 3) for i, line in enumerate(gold)]
    task = toys.Parsing(toys.Trees())
    rated = samples.rate(task, [" ".join(leaf.word for leaf in leaves(parse(line))) for line in gold], output, gold)
    expected = [brackets.scores([o], [g])["f1"].score for o, g in zip(output, gold, strict=True)]
    assert rated.scores == pytest.approx(expected, abs=1e-4) and min(expected) < 100 == max(expected)
    assert rated.of(range(4)) == pytest.approx(brackets.scores(output, gold)["f1"].score, abs=1e-4)


# ------------------------------------------------------------------------------ The page as a file


def test_content_cannot_leave_its_element():
    text = {"a": [HOSTILE, "\u2028\u2029", "<!--<script>", "]]>"], "b": 0.5}
    found = html.embedded(text)
    assert "<" not in found and "\u2028" not in found and json.loads(found) == text
    assert json.loads(html.embedded(["a\ud800b"])) == ["a\ufffd\ufffd\ufffdb"]
    with pytest.raises(ValueError, match="JSON"):
        html.embedded(float("nan"))


def test_a_page_is_one_small_file(written, run):
    text = written.read_text()
    assert written == run.folder / "report.html" and len(text) < 300_000
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text.split('id="content">')[0])
    assert text.count("<script") == 2 and "default-src 'none'" in text
    assert not [*run.folder.glob("*.unfinished")]


def test_the_page_says_what_was_run(written, run, toy):
    found = content(written)["run"]
    assert found["knobs"][0][0] == "name" and dict(each[:2] for each in found["knobs"])["model.d_ff"] == "64"
    assert found["differences"] == [
        {
            "from": "reversal",
            "about": "as registered",
            "rows": [["decoding.beam", "4", "2"], ["decoding.extra_length", "50", "4"], ["train_steps", "12", "40"]],
        }
    ]
    made = dict(found["parts"][0])
    assert (made["hardware"], made["commit"]) == ("2 x TestChip (cpu)", runs.commit())
    assert dict(found["data"])["pairs"].startswith("1,200 read, ")
    facts = {name: value for name, value, _ in found["facts"]}
    leaves = jax.tree.leaves(checkpoint.abstract_params(toy))
    assert facts["parameters"] == f"{sum(np.prod(leaf.shape) for leaf in leaves):,}"
    assert (facts["steps"], facts["tokens/s"]) == ("40", "2,500")


def test_attention_on_the_page_is_that_of_the_outputs(written, loaded):
    found = content(written)["attention"]
    assert found["weights"] == "step 40"
    shown = [(each["source"], each["output"]) for each in found["sentences"]]
    assert shown == [(s, o) for s, o in zip(SOURCES, OUTPUTS, strict=True) if len(s.split()) >= 4]
    assert found["sentences"] == [each.facts() for each in attention.of_pairs(*loaded, [Pair(*each) for each in shown])]


def test_what_is_missing_is_said(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    said = []
    found = content(page.write([tmp_path / "run"], None, None, said.append))
    assert re.search("^no attention: no checkpoint in ", said[0]) and "missing" in found["attention"]
    shutil.rmtree(tmp_path / "run" / "evaluations")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    found = content(page.write([tmp_path / "run"], tmp_path / "other.html", None, said.append))
    assert found["samples"] == {"missing": f"There is no evaluation yet: t2t evaluate {tmp_path / 'run'}"}
    assert found["evaluations"] == [] and found["curves"][0]["train"] == {"step": []}


def test_the_size_of_a_page_is_bounded(monkeypatch):
    each = {"views": {"cross": {"weights": "A" * 4_000}}}
    monkeypatch.setattr(page, "WEIGHTS", 7_000)
    assert page._bounded([each] * 5) == [each] * 2 and page._bounded([each]) == [each]
    rows = page._evenly([*range(5_001)], 1_200)
    assert rows[-1] == 5_000 and len(rows) <= 1_200 and len(set(np.diff(rows))) == 1
    assert page._evenly([], 5) == [] and page._evenly([1, 2], 5) == [1, 2]


def test_mistakes(t2t, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    other = run.folder.parent / "nothing"
    for words, complaint in {
        f"{run.folder} {other}": "2 runs: say where their page goes with --out FILE.html",
        f"{run.folder} {run.folder} --out a.html": f"{run.folder} is given twice",
        f"{run.folder} {other} --out a.html --average 2": "--average is for the attention of one run, which a page of "
        "several does not show",
        f"{run.folder} --out .": "cannot write .: it is a folder that is there; give another name",
        f"{run.folder} --json": "--json is for a table of the paper; the page of a run is one file of HTML",
        f"{run.folder} --average 3": f"{run.checkpoints} has 1 checkpoint(s), too few to average 3",
        f"{run.folder} --average x": "--average is a whole number, at least 1, not 'x'",
        "empty": "empty is not a run folder: no experiment.json in it",
        f"{other}": f"{other} is not a run folder: no experiment.json in it, and no such folder",
        "table2 table3": "table2 is reported alone, not with table3",
        "table2 --out a.html": "--out is for the page of a run; a table goes to standard output",
        f"{run.folder} --out empty": "cannot write empty: Is a directory",
    }.items():
        code, out, err = t2t("report", *words.split())
        assert (code, out, err) == (2, "", f"t2t: {complaint}\n")
    assert [*tmp_path.iterdir()] == [tmp_path / "empty"] and not [*(tmp_path / "empty").iterdir()]


# ------------------------------------------------------------------------------ In a browser

FLAGS = (
    "no-sandbox disable-gpu disable-quic no-first-run "
    "disable-background-networking disable-component-update disable-sync"
)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="no browser is driven without playwright: t2t[browser]")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=[f"--{flag}" for flag in FLAGS.split()])
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page; in the end nothing may have gone wrong in it, and nothing been fetched but the file."""
    contexts, said, asked = [], [], []

    def open_(path, width=1100, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"file://{path}")
        return tab

    yield open_
    files = [url for url in asked if not url.startswith("file://") and url not in ("about:srcdoc", "about:blank")]
    for context in contexts:
        context.close()
    assert (said, files) == ([], []) and asked


def texts(tab, selector):
    return tab.locator(selector).all_inner_texts()


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light"), (360, "dark")])
def test_it_fits_every_screen(written, opened, width, scheme):
    tab = opened(written, width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.locator("section").count() == 6 and tab.locator(".chart svg").count() == 5
    ground, ink = tab.evaluate(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (bright[0] > 600 and bright[1] < 200) if scheme == "light" else (bright[0] < 200 and bright[1] > 600)


def test_numbers_are_those_of_the_files(written, run, opened):
    tab = opened(written)
    summary = json.loads((run.folder / "evaluations" / "test-step40" / "scores.json").read_text())
    rows = [row.locator("td").all_inner_texts() for row in tab.locator("#scores tbody tr").all()]
    expected = [
        [name, f"{s['score']:.2f}", f"{s['low']:.2f} to {s['high']:.2f}", s["signature"]]
        for name, s in summary["scores"].items()
    ]
    assert rows == [["perplexity", "4.19", "", "per token, unsmoothed"], *expected]
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    train, dev = ([row for row in metrics if row["split"] == split] for split in ("train", "dev"))
    for chart, name in {
        "loss": "loss",
        "perplexity": "perplexity",
        "learning": "learning_rate",
        "target": "tokens_per_second",
    }.items():
        place = tab.locator(f"[data-chart^='{chart}']")

        def read(split, place=place):
            return float(place.locator(f"[data-series={split}] b").get_attribute("data-value"))

        assert read("train") == pytest.approx(train[-1][name], rel=1e-5)
        if name in dev[0]:
            assert read("dev") == pytest.approx(dev[0][name], rel=1e-5)
        place.locator("svg").hover(position={"x": 50, "y": 60})
        assert read("train") == pytest.approx(train[0][name], rel=1e-5)
        assert "step 10" in place.locator(".readout").inner_text()


def drawn(tab, selector):
    return tab.locator(selector).all_text_contents()


def cells(tab):
    return [
        float(each)
        for each in tab.locator(".map .cell").evaluate_all("all => all.map(x => x.getAttribute('fill-opacity'))")
    ]


def test_choosing_changes_the_picture(written, opened):
    tab = opened(written)
    sentences = content(written)["attention"]["sentences"]

    def expected(sentence, kind, layer, head=None):
        weights = weights_on_page(sentences[sentence]["views"][kind])[layer - 1]
        return (weights.mean(0) if head is None else weights[head - 1]).ravel()

    def is_shown(*what):
        np.testing.assert_allclose(cells(tab), expected(*what), atol=6e-4)

    is_shown(0, "cross", 2)
    tab.locator("[data-layer='1'][data-head='3']").click()
    is_shown(0, "cross", 1, 3)
    assert tab.locator(".head[aria-pressed=true]").get_attribute("aria-label") == "layer 1, head 3"
    before = tab.locator(".lines svg").inner_html()
    tab.locator("[data-layer='2'][data-head='2']").click()
    is_shown(0, "cross", 2, 2)
    assert tab.locator(".lines svg").inner_html() != before
    for kind in ("encoder", "decoder"):
        tab.locator(f"[data-kind={kind}]").click()
        is_shown(0, kind, 2, 2)
    tab.locator("#attention select").select_option("1")
    is_shown(1, "decoder", 2, 2)
    view = sentences[1]["views"]["decoder"]
    assert drawn(tab, ".lines .pick") == view["queries"] and drawn(tab, ".lines text:not(.pick)") == view["keys"]
    tab.locator(".lines .pick").nth(2).click()
    row = weights_on_page(view)[1, 1, 2]
    assert texts(tab, ".bars b") == [f"{weight:.2f}" for weight in sorted(row, reverse=True)[:6]]
    assert tab.locator(".lines .weight").count() == (row >= 0.02).sum()


def test_text_is_shown_and_not_run(written, opened):
    tab = opened(written)
    assert tab.evaluate("window.harmed") is None and tab.locator("img, #samples b, #attention b i").count() == 0
    shown = [
        " ".join(text.split()) for text in texts(tab, "#samples details:first-of-type .sample:nth-of-type(3) .text")
    ]
    assert shown[:3] == [SOURCES[2], OUTPUTS[2], REFERENCES[2]]
    assert f"{HOSTILE} → {OUTPUTS[2]}" in texts(tab, "#attention option")
    assert tab.locator("script").count() == 2


def test_differences_are_marked(written, opened):
    tab = opened(written)
    sample = tab.locator("#samples details").first.locator(".sample").nth(1)
    assert sample.locator("mark.off").all_inner_texts() + sample.locator("mark.missed").all_inner_texts() == [
        "ice",
        "ice",
    ]
    assert tab.locator("#samples details").first.locator(".sample").first.locator("mark").count() == 0


def test_several_runs_on_one_page(t2t, run, opened, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    record = json.loads((other / "experiment.json").read_text())
    record["experiment"]["seed"] = 7
    (other / "experiment.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    (other / "metrics.jsonl").write_text("".join(json.dumps({**row, "loss": row["loss"] / 2}) + "\n" for row in lines))
    place = tmp_path / "both.html"
    assert t2t("report", run.folder, other, "--out", place) == (0, f"{place}\n", "")
    tab = opened(place, 400)
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    assert texts(tab, "#knobs td") == ["seed", "0", "7"]
    rows = {
        row[0]: row[1:]
        for row in (each.locator("td").all_inner_texts() for each in tab.locator("#table tbody tr").all())
    }
    assert rows["test sacrebleu"] == ["61.72"] * 2 and rows["steps"] == ["40"] * 2
    loss = tab.locator("[data-chart='loss, train']")
    assert [
        float(loss.locator(f"[data-series={name}] b").get_attribute("data-value")) for name in ("mine", "other")
    ] == [1, 0.5]
    assert loss.locator(".curve").count() == 2


def test_attention_in_a_notebook(loaded, opened, tmp_path):
    (found,) = attention.of_pairs(*loaded, [Pair(SOURCES[2], "sun <cat>")])
    (tmp_path / "cell.html").write_text(f"<!doctype html><meta charset=utf-8>{found._repr_html_()}")
    frame = opened(tmp_path / "cell.html").frame_locator("iframe")
    frame.locator("[data-layer='1'][data-head='4']").click()
    assert frame.locator(".map .cell").count() == found.view().weights[0, 0].size
    assert frame.locator("#attention option").inner_text() == f"{SOURCES[2]} → sun <cat>"
    assert found._repr_svg_() == found.svg()


def test_trees_are_drawn_with_what_differs(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("T2T_DATA", str(tmp_path / "cache"))
    tree = toys.grammar(tmp_path)
    gold = random_trees(6, 3)
    sources = [" ".join(leaf.word for leaf in leaves(parse(line))) for line in gold]
    wrong = gold[0].replace("(NP ", "(QP ", 1)
    scores = {"f1": {**SCORE, "score": 80.5}}
    run = folder_of(tmp_path / "parser", tree, (sources, [wrong, *gold[1:]], gold), scores)
    tab = opened(page.write([run.folder], None, None, pytest.fail), 400)
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    first, second = (tab.locator("#samples details").first.locator(".sample").nth(i) for i in range(2))
    assert first.locator(".off").all_text_contents() == ["QP"] and first.locator(".missed").all_text_contents() == [
        "NP"
    ]
    assert second.locator(".off, .missed").count() == 0
    assert second.locator(".tree").first.locator(".word").all_text_contents() == sources[1].split()
    labels = second.locator(".tree").first.locator("text:not(.word)").all_text_contents()
    assert sorted(labels) == sorted(re.findall(r"\((\S+)", gold[1]))
    assert tab.locator("#attention .head").count() == 5
