"""The page of a comparison: ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kslottery_fast.lab.experiment.interpret import PARTS

from .html_parts import document, fact_list, html_figure, html_table, prose
from .page import CITATION
from .picture import Picture
from .report_data import percent, plural, pvalue_text, visible_token
from .tables import COLUMNS, NOTE, arm_label, interval_cell


def render(summary: Mapping[str, Any], environment: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page as text; figures are numbered in the order of ``pictures``."""
    figures = {picture.name: html_figure(picture, place) for place, picture in enumerate(pictures, 1)}
    numbers = iter(range(1, 10_000))
    parts = [f"<header><h1>{prose(summary['title'])}</h1></header>"]
    for code, language in summary["languages"].items():
        parts += _language(code, language, figures, numbers)
    if "mean" in summary:
        parts += ["<h2>Mean over languages</h2>", _arms(next(numbers), "Mean over languages", summary["mean"])]
        parts.append(figures["languages"])
    parts += ["<h2>Settings</h2>", fact_list({**summary["settings"], **summary["grid"], **summary["signatures"]})]
    parts += ["<h2>Environment</h2>", fact_list(environment)]
    parts.append(f"<h2>Cite</h2>\n<pre>{prose(CITATION)}</pre>")
    footer = (
        "Beside this page: scores.csv, scores.tex, rows-*.csv, the figures as PNG, and all numbers in summary.json."
    )
    return document(summary["title"], "\n".join(parts), footer)


def _language(code: str, language: Mapping[str, Any], figures: Mapping[str, str], numbers: Any) -> list[str]:
    name = language["name"]
    advice = "".join(f"<li>{prose(sentence)}</li>" for sentence in language["advice"])
    return [
        f"<h2>{prose(name)}</h2>",
        f'<h3>Advice</h3>\n<ul class="findings">{advice}</ul>',
        "<h3>Arms</h3>",
        _arms(next(numbers), name, language["arms"]),
        figures[f"scores-{code}"],
        _controls(next(numbers), language["controls"]),
        "<h3>Tickets</h3>",
        *(figures[f"{kind}-{code}"] for kind in ("tickets", "rank", "selectors")),
        _tickets(next(numbers), language["tickets"]),
        _positions(next(numbers), language["interpretation"]),
        "<h3>Certification</h3>",
        _certificates(next(numbers), language["certificates"]),
    ]


def _arms(place: int, name: str, arms: Mapping[str, Any]) -> str:
    rows = [
        f'<th scope="row" class="name">{prose(arm_label(spec, arm))}</th>'
        + "".join(f"<td>{value}<small>{bounds}</small></td>" for value, bounds in (c.cell(arm) for c in COLUMNS))
        for spec, arm in arms.items()
    ]
    return html_table(place, f"{prose(name)}. {prose(NOTE)}", ["Arm", *(column.heading for column in COLUMNS)], rows)


def _controls(place: int, controls: Sequence[Mapping[str, Any]]) -> str:
    if not controls:
        return ""
    metrics = {"nll": ("NLL", 3), "bleu_raw": ("BLEU raw", 2), "bleu_first_line": ("BLEU first line", 2)}
    rows = []
    for entry in controls:
        cells = (
            interval_cell(entry["difference"][metric], digits, signed=True) for metric, (_, digits) in metrics.items()
        )
        rows.append(
            f'<th scope="row">{prose(entry["control"])} minus {prose(entry["own"])}</th>'
            + "".join(f"<td>{value}<small>{bounds}</small></td>" for value, bounds in cells)
        )
    caption = (
        "Controls minus Partial Tuning of the same size, paired over sentences and training seeds. NLL above 0: the "
        "tickets are better; BLEU above 0: the control is."
    )
    return html_table(place, caption, ["Difference", *(heading for heading, _ in metrics.values())], rows)


def _tickets(place: int, tickets: Mapping[str, Any]) -> str:
    rows = []
    for ticket in tickets["list"]:
        known = {True: "yes", False: "no", None: "–"}[ticket["in_template"]]
        effects = "".join(
            "<td>{}<small>{}</small></td>".format(*interval_cell(ticket[name], 4, signed=True))
            for name in ("alone", "left_out")
        )
        rows.append(
            f"<td><code>{escape(visible_token(ticket['token']))}</code></td><td>{ticket['token_id']}</td>"
            f"<td>{ticket['statistic']:.4f}</td><td>{escape(pvalue_text(ticket['pvalue']))}</td>"
            f"<td>{ticket['count']:,}</td><td>{ticket['rank']:,}</td><td>{known}</td>{effects}"
        )
    caption = (
        f"{prose(plural(len(tickets['list']), 'ticket'))} of the first training seed, {prose(tickets['spec'])}. "
        "Effects are on validation NLL, nats per token, with 95 % intervals over sentences. Alone: what this row gains "
        "when it alone is transferred. Left out: what is lost when all tickets but this one are transferred."
    )
    names = ("Token", "Id", "D", "p", "Count", "Rank", "In template", "Alone", "Left out")
    return html_table(place, caption, names, rows, tall=len(rows) > 20)


def _positions(place: int, found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    rows = []
    for spec, effects in found.items():
        lines = [(part, [effects[part][name] for name in ("shapley", "alone", "left_out")]) for part in PARTS]
        for part, intervals in [*lines, ("all three", [effects["gain"], None, None])]:
            cells = (interval_cell(one, 3, signed=True) for one in intervals)
            rows.append(
                f'<th scope="row">{prose(spec)}: {part}</th>'
                + "".join(f"<td>{value}<small>{bounds}</small></td>" for value, bounds in cells)
            )
    caption = (
        "Through which positions the tuned rows act, on validation NLL (nats per token, first seed): switched on at "
        "the tokens of the instruction, of the source sentence, or of the target read so far, and off elsewhere. "
        "Gain: the Shapley value, the mean over the orders of switching them on; the three add up to the whole gain. "
        "Alone: only there. Left out: what is lost when all but these are on. Intervals: 95 %, over sentences."
    )
    return html_table(place, caption, ("Rows of, at", "Gain", "Alone", "Left out"), rows)


def _certificates(place: int, certificates: Mapping[str, Any]) -> str:
    rows = [
        f"<td>{seed}</td><td>{level['alpha']:g}</td><td>{level['tau']:.4f}</td><td>{level['transferred']}</td>"
        f"<td>{percent(level['certified'], 1)}</td><td>{percent(level['certified_accuracy'], 1)}</td>"
        f"<td>{level['violations']}</td><td>{percent(level['violating_sentences_upper'], 1)}</td>"
        for seed, certificate in certificates.items()
        for level in certificate["levels"]
    ]
    sentences = "".join(_guarantee(seed, certificate) for seed, certificate in certificates.items())
    caption = (
        "The paper's criterion over alpha: certified where half the margin of the embed-tuned model exceeds "
        "tau(alpha). It is no proof: violations are certified positions at which the model with the rows that "
        "alpha selects was run and predicted another token. Upper bound: of the share of sentences with a "
        "violation (Clopper-Pearson, one-sided, 95 %)."
    )
    names = ("Seed", "alpha", "tau", "Rows", "Certified", "Certified, right", "Violations", "Upper bound")
    return f"<ul>{sentences}</ul>" + html_table(place, caption, names, rows, tall=len(rows) > 20)


def _guarantee(seed: str, certificate: Mapping[str, Any]) -> str:
    share, confidence = certificate["agreement"]["share"], percent(certificate["confidence"])
    return (
        f"<li>Seed {seed}: with probability {confidence} over the draw of the sentences, the model with the "
        f"transferred tickets predicts as Embed Tuning does at <b>{percent(share['low'], 1)}</b> or more of a "
        f"sentence's positions on average (measured {percent(share['value'], 1)}, "
        f"{plural(certificate['sentences'], 'sentence')}).</li>"
    )
