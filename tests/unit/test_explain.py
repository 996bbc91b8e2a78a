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
