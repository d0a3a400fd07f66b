"""Table 1, measured: its columns are the paper's, its powers those of what is measured. No test asserts a time."""

import json
import re
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest

from t2t.report import charts, table1

# Typed from the page.
PAPER = """
Self-Attention | O(n²·d) | O(1) | O(1)
Recurrent | O(n·d²) | O(n) | O(n)
Convolutional | O(k·n·d²) | O(1) | O(log_k(n))
Self-Attention (restricted) | O(r·n·d) | O(1) | O(n/r)
"""


def quiet(_):
    pass


def test_the_columns_are_the_papers():
    expected = [tuple(line.split(" | ")) for line in PAPER.strip().splitlines()]
    assert [(name, *row[:3]) for name, row in table1.PAPER.items()] == expected
    for row in table1.PAPER.values():  # its powers are those that its complexity spells
        for letter in "nd":
            squared = f"{letter}²" in row.complexity
            assert letter in row.complexity and getattr(row, letter) == 1 + squared
    assert {row for row, _ in table1.ROWS.values()} == set(table1.PAPER)


def test_a_power_is_fitted_to_the_largest_sizes():
    assert table1.power([(n, 7e-9 * n**1.75) for n in (64, 128, 512)]) == pytest.approx(1.75)
    noise = [1e9, 3.0]  # of small sizes, which the fit leaves out
    assert table1.power([*zip((2, 4), noise, strict=True), *((n, n**2) for n in (8, 16, 32))]) == pytest.approx(2)
    assert table1.power([(10, 5.0), (20, 5.0)]) == pytest.approx(0)
    assert table1.power([(10, 0), (20, 5.0)]) is None


@pytest.mark.parametrize(
    ("name", "n", "d"),
    [
        ("self-attention", 2, 1),
        ("self-attention, blocked", 2, 1),
        ("recurrent (LSTM)", 1, 2),
        ("convolutional (k = 3)", 1, 2),
        ("restricted (r = 64)", 1, 1),
    ],
)
def test_operations_grow_with_the_powers_of_the_paper(name, n, d):
    """Counted, not timed. Of a layer that is linear in n or d it is twice as many for twice the size."""
    row, build = table1.ROWS[name]
    assert (table1.PAPER[row].n, table1.PAPER[row].d) == (n, d)

    def operations(*size):
        layer = build(*size, "float32")
        return table1.cost.flops(jax.make_jaxpr(layer.function)(layer.weights, layer.inputs).jaxpr)

    assert np.log2(operations(4096, 256) / operations(2048, 256)) == pytest.approx(n, abs=0.02)
    assert np.log2(operations(1024, 1024) / operations(1024, 512)) == pytest.approx(d, abs=0.03)


def test_projections_add_what_the_papers_column_leaves_out():
    """Four products of n x d and d x d."""
    counted = []
    for name in ("self-attention", "self-attention, projections too"):
        layer = table1.ROWS[name][1](128, 64, "float32")
        counted.append(table1.cost.flops(jax.make_jaxpr(layer.function)(layer.weights, layer.inputs).jaxpr))
    assert counted[1] - counted[0] == 4 * 2 * 128 * 64**2


@pytest.mark.parametrize("name", [name for name in table1.ROWS if "fused" not in name])
def test_a_layer_takes_n_vectors_to_n_others(name):
    layer = table1.ROWS[name][1](24, 8, "float32")

    def forward_and_back(*x):
        out, pull = jax.vjp(layer.function, *x)
        return out, pull(out)

    out, back = jax.eval_shape(forward_and_back, layer.weights, layer.inputs)
    assert out.shape[:2] == (1, 24) and out.size == 24 * 8
    assert jax.tree.map(lambda x: x.shape, back) == jax.tree.map(lambda x: x.shape, (layer.weights, layer.inputs))


# ------------------------------------------------------------------------------ On the command line


@pytest.fixture(scope="module")
def small():
    """A measurement of three kinds of tiny layers, each run once."""
    few = ("self-attention", "self-attention, fused", "recurrent (LSTM)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table1, "ROWS", {name: table1.ROWS[name] for name in few})
        patch.setattr(table1, "LEAST", 1)
        patch.setattr(table1, "SECONDS", 0.0)
        return table1.measure([16, 32], [8, 16], quiet)


def test_what_is_measured(small):
    assert small["middle"] == {"n": 32, "d": 16} and small["dtype"] == "float32"
    assert all(row["paper"] == table1.PAPER[row["row"]]._asdict() for row in small["rows"])
    measured = [row for row in small["rows"] if not row["refused"]]
    assert [row["layer"] for row in measured] == ["self-attention", "recurrent (LSTM)"]
    for row in measured:
        assert [(each["n"], each["d"]) for each in row["measured"]["n"]] == [(16, 16), (32, 16)]
        assert [(each["n"], each["d"]) for each in row["measured"]["d"]] == [(32, 8), (32, 16)]
        assert row["measured"]["n"][1] == row["measured"]["d"][1]  # one measurement, in both
        for axis in "nd":
            points = [(each[axis], each["flops"]) for each in row["measured"][axis]]
            assert row["fitted"][axis]["flops"] == table1.power(points)
            assert all(each["forward"] > 0 and each["training"] > 0 for each in row["measured"][axis])


def test_what_cannot_run_says_why(small):
    (fused,) = [row for row in small["rows"] if row["layer"] == "self-attention, fused"]
    assert "is a kernel of GPUs" in fused["refused"] and fused["measured"] is fused["fitted"] is None
    assert f"self-attention, fused: not run, {fused['refused']}" in table1.text(small)


def test_the_table_in_words(small):
    said = table1.text(small)
    (line,) = re.findall(r"^recurrent \(LSTM\) +O.*$", said, re.MULTILINE)
    cells = line.split()
    assert cells[2:6] == ["O(n·d²)", "O(n)", "O(n)", "1"] and cells[10] == "2"
    (row,) = [row for row in small["rows"] if row["layer"] == "recurrent (LSTM)"]
    assert cells[6] == f"{row['fitted']['n']['flops']:.2f}" and cells[11] == f"{row['fitted']['d']['flops']:.2f}"
    assert f"| recurrent (LSTM) | {' | '.join(cells[2:])} |" in table1.markdown(small)


def test_memory_is_less_where_no_array_of_all_pairs_is_made():
    by_name = {}
    for name in ("self-attention", "self-attention, blocked"):
        layer = table1.ROWS[name][1](2048, 16, "float32")
        compiled = jax.jit(layer.function).lower(layer.weights, layer.inputs).compile()
        by_name[name] = compiled.memory_analysis().temp_size_in_bytes
    assert by_name["self-attention"] >= 4 * 2048**2 > 3 * by_name["self-attention, blocked"]


def test_the_command(t2t, small, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(table1, "measure", lambda *sizes: asked.append(sizes[:2]) or small)
    out = tmp_path / "table1.svg"
    code, said, _ = t2t("bench", "table1", "--lengths", "16,32", "--widths", "8,16", "--out", out, "--json")
    assert code == 0 and json.loads(said) == json.loads(json.dumps(small)) and asked == [([16, 32], [8, 16])]
    picture = ElementTree.fromstring(out.read_text())
    texts = {each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"recurrent (LSTM)", "length n", "width d", "16", "32"} <= texts
    code, said, _ = t2t("bench", "table1")
    assert code == 0 and said.startswith("Table 1 measured on") and asked[1][0][-1] == 4096


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("table1 --lengths 64", "--lengths are two sizes or more, ascending"),
        ("table1 --lengths 64,32", "two sizes or more, ascending"),
        ("table1 --lengths 64,x", "--lengths is a whole number, at least 1, not 'x'"),
        ("table1 --widths 64,100", "multiples of it, the width of a head, not 100"),
        ("table1 --widths 7,64", "not 7"),
        ("table1 --out t.png", "a picture is an .svg file"),
        ("table1 quickstart", "NAME has no meaning there"),
        ("table1 --model.d_ff 3", "--model.d_ff has no meaning there"),
        ("table1 --number 3", "--number has no meaning there"),
        ("train", "needs the name of an experiment"),
        ("train quickstart --lengths 3,4", "--lengths is for `t2t bench table1`"),
    ],
)
def test_mistakes(t2t, words, complaint):
    code, out, said = t2t("bench", *words.split())
    assert (code, out) == (2, "") and complaint in said and said.count("\n") == 1


# ------------------------------------------------------------------------------ The picture


def test_points_stand_where_their_values_are():
    """On logarithmic axes a power is a straight line."""
    curve = [(n, float(n**2)) for n in (10, 100, 1000)]
    panel = charts.Panel("panel", "n", {"square": curve}, str)
    picture = ElementTree.fromstring(charts.picture("title", [panel]))
    (line, _) = picture.iter("{http://www.w3.org/2000/svg}polyline")  # the other is the legend's
    points = np.array([[float(x) for x in pair.split(",")] for pair in line.attrib["points"].split()])
    steps = np.diff(points, axis=0)
    assert steps[0] == pytest.approx(steps[1], abs=0.2) and steps[0][0] > 0 > steps[0][1]
    assert (points[0, 0], points[-1, 0]) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert (points[0, 1], points[-1, 1]) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)  # 100 and 1,000,000


def test_shares_go_from_nothing_to_all():
    panel = charts.Panel("panel", "n", {"a": [(1, 0.0), (2, 1.0)]}, str, log=False)
    picture = ElementTree.fromstring(charts.picture("title", [panel]))
    points = next(picture.iter("{http://www.w3.org/2000/svg}polyline")).attrib["points"].split()
    assert [point.split(",")[1] for point in points] == [f"{charts.HEIGHT - charts.BOTTOM:.1f}", f"{charts.TOP:.1f}"]
