"""An explanation as one HTML file: a heat map of the layers, without scripts; names of a model are escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping

from edgepack.explain import Explanation, Layer, span
from edgepack.report import plain

BAD_DB, GOOD_DB = 5.0, 45.0  # the colours' ends
STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222;background:#fff}
table{border-collapse:collapse}th,td{padding:2px 8px;text-align:right;border:1px solid #ddd;white-space:nowrap}
th{position:sticky;top:0;background:#f4f4f4}td.n,th.n{text-align:left;font-family:monospace}
p{max-width:60em}
"""
COLUMNS = ("#", "layer", "operator", "in", "single dB", "own dB", "entire dB", "kernel dB", "kernel cosine",
           "scale holds", "seen", "beyond", "MACs", "weights")  # fmt: skip


def render(found: Mapping[str, Explanation], title: str) -> str:
    """The page: for each engine, its layers in the order of the graph; ``#`` is the rank by what they alone do."""
    name = html.escape(plain(title))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>INT8 of {name}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>INT8 of {name}</h1>\n"
        "<p><b>in</b>: what the engine computes the layer in. <b>single</b>: the model's outputs when only this layer "
        "is quantized. <b>own</b>: its own output then. <b>entire</b>: its own output when all layers are quantized, "
        "simulated; <b>kernel</b>: the same from the engine itself. <b>beyond</b>: the share of its input's values "
        f"that the scale can't hold. Red is {BAD_DB:g} dB and less, white {GOOD_DB:g} dB and more.</p>\n"
        f"{''.join(_section(engine, each) for engine, each in found.items())}</body></html>\n"
    )


def _section(engine: str, found: Explanation) -> str:
    ranks = {layer.layer: rank for rank, layer in enumerate(found.ranked(), 1)}
    head = "".join(f'<th class="n">{name}</th>' if name == "layer" else f"<th>{name}</th>" for name in COLUMNS)
    body = "\n".join(_row(layer, ranks[layer.layer]) for layer in found.layers)
    return (
        f"<h2>{html.escape(plain(engine))}</h2>\n"
        f"<p>All layers in INT8, simulated: SQNR {found.sqnr_db:.1f} dB, cosine {found.cosine:.4f} at the outputs, on "
        f"{found.samples} samples.</p>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
    )


def _row(layer: Layer, rank: int) -> str:
    cells = [
        f"<td>{rank}</td>",
        f'<td class="n">{html.escape(plain(layer.layer))}</td>',
        f"<td>{html.escape(plain(layer.op))}</td>",
        f"<td>{html.escape(plain(layer.how))}</td>",
        *(_decibels(value) for value in (layer.single_db, layer.own_db, layer.entire_db, layer.kernel_db)),
        f"<td>{'-' if layer.kernel_cosine is None else f'{layer.kernel_cosine:.4f}'}</td>",
        f"<td>{span(layer.low, layer.high)}</td>",
        f"<td>{span(layer.lowest, layer.highest)}</td>",
        _share(layer.saturated, worst=0.02),
        f"<td>{layer.macs:.2%}</td>",
        f"<td>{layer.weights:.2%}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _decibels(value: float | None) -> str:
    if value is None:
        return "<td>-</td>"
    return _cell(f"{value:.1f}", (GOOD_DB - value) / (GOOD_DB - BAD_DB))


def _share(value: float | None, worst: float) -> str:
    return "<td>-</td>" if value is None else _cell(f"{value:.2%}", value / worst)


def _cell(text: str, heat: float) -> str:
    """A cell between white (0) and red (1)."""
    cold = round(255 - 160 * min(1.0, max(0.0, heat)))
    return f'<td style="background:rgb(255,{cold},{cold})">{text}</td>'
