"""An explanation for people: the table, and the heat map as HTML."""

from __future__ import annotations

from dataclasses import replace

from edgepack import explain, explain_html
from tests.models import HOSTILE
from tests.unit.test_repair import layer

FOUND = explain.Explanation(
    layers=(layer("quiet", 0.001, 0.5), layer("loud", 0.9, 0.4), layer("\x1b[31mred\n", 0.1, 0.1)),
    sqnr_db=12.34,
    cosine=0.98765,
    samples=8,
)


def test_the_worst_layer_comes_first_and_the_rest_is_counted() -> None:
    text = explain.table(FOUND, most=1)

    assert "loud" in text and "quiet" not in text and "2 more layers" in text


def test_a_models_names_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in explain.table(FOUND) and "\\x1b[31mred\\n" in explain.table(FOUND)


def test_the_document_keeps_the_order_of_the_graph_with_ranks() -> None:
    assert [(item["layer"], item["rank"]) for item in explain.document(FOUND)["layers"][:2]] == [
        ("quiet", 3),
        ("loud", 1),
    ]


def test_the_heat_map_is_one_file_without_scripts_and_escapes_every_name() -> None:
    hostile = replace(FOUND, layers=(layer("<script>alert(1)</script>" + HOSTILE, 1.0, 1.0, op="<b>"),))
    page = explain_html.render({"onnxruntime": hostile}, "<img src=x onerror=1>")

    assert "<script" not in page and "<img" not in page and "<b>single" in page and "&lt;b&gt;" in page
    assert "http" not in page and "src=" not in page.replace("src=x", "")


def test_an_engines_own_layers_replace_kernels_and_ranges_and_nothing_else() -> None:
    real = explain.Real(
        how="dynamic", kernel_db=3.25, kernel_cosine=0.5, low=None, high=None, lowest=-7.0, highest=7.0, saturated=None
    )
    seen = FOUND.by({"loud": real})
    quiet, loud, _ = seen.layers

    assert (loud.how, loud.kernel_db, loud.low, loud.highest) == ("dynamic", 3.25, None, 7.0)
    assert (loud.noise, loud.macs, seen.ranked()[0].layer) == (0.9, 0.4, "loud")
    assert (quiet.how, quiet.kernel_db, quiet.low) == ("unknown", None, None)
    assert "dynamic" in explain.table(seen, engine="ncnn") and "from ncnn itself" in explain.table(seen, engine="ncnn")


def test_the_heat_map_has_a_section_for_each_engine() -> None:
    page = explain_html.render({"ncnn": FOUND.by({}), "tflite": FOUND}, "net")

    assert page.count("<table>") == 2 and page.index("<h2>ncnn") < page.index("<h2>tflite")
