"""The page of the report: one HTML file that loads nothing, runs nothing, follows the reader's theme, prints.

Its Content-Security-Policy enforces the first two. Whatever comes from data is escaped; a number that does
not exist is a dash.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .html_parts import document, fact_list, html_figure, html_table, prose
from .picture import MODEL_COLOURS, Picture
from .report_data import METRICS, ReportData, count_text, model_label, percent, plural, pvalue_text, visible_token

MAX_SAMPLE_CHARS = 240
CITATION = """\
@inproceedings{yuan-etal-2025-ks,
  title     = {{KS}-Lottery: Finding Certified Lottery Tickets for Multilingual Transfer
               in Large Language Models},
  author    = {Yuan, Fei and Ma, Chang and Yuan, Shuai and Sun, Qiushi and Li, Lei},
  booktitle = {Proceedings of NAACL 2025 (Volume 1: Long Papers)},
  pages     = {9077--9090},
  year      = {2025},
  note      = {arXiv:2402.02801}
}"""


def render(data: ReportData, pictures: Sequence[Picture]) -> str:
    """The whole page as text. Figures are numbered in the order of ``pictures``."""
    figures = {picture.name: html_figure(picture, place) for place, picture in enumerate(pictures, 1)}
    parts = [
        _head(data),
        "<h2>Models</h2>",
        _models(data),
        figures["scores"],
        "<h2>Tickets</h2>",
        _top_k_mark(data),
        *(figures.get(name, "") for name in ("histogram", "frequency", "ecdf")),
        _tickets(data),
        "<h2>Certification</h2>",
        _certificate(data.certificate),
        figures.get("certificate", ""),
        _levels(data),
        "<h2>Sample translations</h2>",
        _samples(data.samples),
        "<h2>Settings</h2>",
        fact_list(data.summary.get("settings") or {}),
        "<h2>Environment</h2>",
        fact_list(data.environment),
        _reproduce(data.environment.get("command")),
    ]
    body = "\n".join(part for part in parts if part)
    return document(data.title, body, "Beside this page: the figures as PNG, and all numbers in summary.json.")


def _head(data: ReportData) -> str:
    table = f"{count_text(data.summary['tickets'].get('vocab_size'))}&nbsp;×&nbsp;{data.dimension:,}"
    findings = data.summary.get("findings") or []
    listed = "".join(f"<li>{prose(finding)}</li>" for finding in findings)
    return (
        f'<header><h1>{prose(data.title)}</h1>\n<p class="lead">KS-Lottery: {prose(data.selection)}, '
        f"out of {plural(len(data.statistic), 'active row')} of a table of {table}.</p></header>"
        + (f'\n<h2>Findings</h2>\n<ul class="findings">{listed}</ul>' if findings else "")
    )


def _models(data: ReportData) -> str:
    intervals = data.summary.get("intervals") or {}
    sign = {"higher": "&nbsp;↑", "lower": "&nbsp;↓", "": ""}
    rows = []
    for name, scores in data.summary["models"].items():
        colour = f"var(--{name.replace('_', '-')})" if name in MODEL_COLOURS else "var(--ink)"
        swatch = f'<span class="swatch" style="background:{colour}" aria-hidden="true"></span>'
        cells = [f'<th scope="row" class="name">{swatch}{prose(model_label(name))}</th>']
        for metric in METRICS:
            interval = metric.interval((intervals.get(name) or {}).get(metric.key))
            cells.append(f"<td>{metric.text(scores.get(metric.key))}<small>{interval}</small></td>")
        rows.append("".join(cells))
    signatures = data.summary.get("signatures") or {}
    caption = (
        f"All models on the same held-out pairs; selected rows: {prose(data.selection)}. NLL in nats "
        "per target token. BLEU and chrF++ from 0 to 100; raw: on the whole output; first line: only on its "
        "first line. Ends: share of outputs that the model itself ended. Chars: mean length of an output. "
        "Trained: numbers trained, none where rows were only copied. Small: 95 % intervals over sentences "
        "(Clopper-Pearson for Ends, else bootstrap). ↑ higher is better, ↓ lower is better."
    )
    cited = "".join(f"<br>{prose(key)}: <code>{prose(value)}</code>" for key, value in signatures.items())
    note = f'<p class="note">Signatures:{cited}</p>' if cited else ""
    return html_table(1, caption, ["Model", *(metric.heading + sign[metric.better] for metric in METRICS)], rows) + note


def _top_k_mark(data: ReportData) -> str:
    if not data.by_top_k:
        return ""
    return (
        f'<p class="mark"><b>{prose(data.selection)}.</b> The rows below are those of the largest D, not a '
        "selection of the test. Rows move further, and more pass the test, with a higher learning rate or "
        "more steps.</p>"
    )


def _tickets(data: ReportData) -> str:
    if not data.tickets:
        return "<p>No ticket: no row moved far enough for the test.</p>"
    rows = [
        f"<td><code>{escape(visible_token(ticket.token))}</code></td><td>{ticket.token_id}</td>"
        f"<td>{ticket.statistic:.4f}</td><td>{escape(pvalue_text(ticket.pvalue))}</td>"
        f"<td>{ticket.count:,}</td><td>{ticket.rank:,}</td>"
        for ticket in data.tickets
    ]
    caption = (
        f"The tickets: {prose(data.selection)}. D: two-sample KS statistic of the row before "
        "and after Embed Tuning; p: its p-value. Rank 1 is the most frequent token of the training corpus."
    )
    names = ("Token", "Token id", "D", "p", "Count in corpus", "Frequency rank")
    return html_table(2, caption, names, rows, tall=len(rows) > 20)


def _certificate(certificate: Mapping[str, Any]) -> str:
    if not certificate:
        return "<p>No certificate was made in this run.</p>"
    words = (
        "<p>The criterion: a prediction of the embed-tuned model is <em>certified</em> at alpha when half "
        "the margin between its two largest next-token probabilities, (p<sub>A</sub> − "
        "p<sub>B</sub>)&nbsp;/&nbsp;2, exceeds tau(alpha), the asymptotic KS threshold. It is the paper's "
        "criterion as we read it, and no proof that the model with only the rows that alpha selects predicts "
        "the same token. A <em>violation</em> is a certified position at which that model was run and "
        "predicted another token.</p>"
    )
    agreement = certificate.get("agreement")
    if not agreement:
        return words + '<p class="mark">Not checked: the transfer model was not run; violations are unknown.</p>'
    tokens, sentences, share = agreement["positions"], agreement["sentences"], agreement.get("share")
    guarantee = (
        f" The guarantee: with probability {percent(certificate['confidence'])} over the draw of the sentences it "
        f"predicts the same token at <b>{percent(share['low'], 1)}</b> or more of a sentence's positions on average, "
        "whatever the criterion says."
        if share
        else ""
    )
    return words + (
        "<p>The check: the model of this run's Partial Transfer predicts the same token at "
        f"<b>{percent(tokens['value'], 1)}</b> "
        f"of {certificate['positions']:,} positions, certified or not ({percent(tokens['low'], 1)} to "
        f"{percent(tokens['high'], 1)}, bootstrap over sentences), and at every position of "
        f"{percent(sentences['value'], 1)} of {plural(certificate['sentences'], 'sentence')} (at least "
        f"{percent(sentences['low'], 1)} with {percent(certificate['confidence'])} confidence, "
        f"Clopper-Pearson).{guarantee} The bounds hold for sentences drawn like these, each bound taken alone.</p>"
    )


def _levels(data: ReportData) -> str:
    if not data.certificate:
        return ""
    rows = [
        f"<td>{level['alpha']:g}</td><td>{level['tau']:.4f}</td><td>{count_text(level.get('transferred'))}</td>"
        f"<td>{percent(level['certified'], 1)}</td>"
        f"<td>{percent(level['certified_accuracy'], 1)}</td><td>{count_text(level['violations'])}</td>"
        f"<td>{count_text(level['violating_sentences'])}</td>"
        f"<td>{percent(level['violating_sentences_upper'], 1)}</td>"
        for level in data.certificate["levels"]
    ]
    caption = (
        f"Certification over alpha; this run's rows: {prose(data.selection)}. Rows: of the transfer model that the "
        "level was checked against. Certified: share of all positions. Upper bound: of the share of "
        "sentences with a violation, with "
        f"{percent(data.certificate['confidence'])} confidence (Clopper-Pearson, one-sided)."
    )
    names = ("alpha", "tau", "Rows", "Certified", "Certified and right", "Violations", "In sentences", "Upper bound")
    return html_table(3, caption, names, rows)


def _samples(samples: Iterable[Mapping[str, str]]) -> str:
    parts = []
    for sample in samples:
        named = [("Source", "source"), ("Reference", "reference")]
        named += [(model_label(name), name) for name in sample if name not in ("source", "reference")]
        pairs = (
            f'<dt>{prose(label)}</dt><dd class="{"source" if key == "source" else "text"}" dir="auto">'
            f"{_clipped(sample[key])}</dd>"
            for label, key in named
        )
        parts.append(f'<dl class="sample">{"".join(pairs)}</dl>')
    if not parts:
        return "<p>No samples were kept.</p>"
    return "<p>Held-out pairs, outputs as generated; ↵ is a line break.</p>\n" + "\n".join(parts)


def _reproduce(command: Any) -> str:
    shown = shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else command
    return (f"<h2>Reproduce</h2>\n<pre>{prose(shown)}</pre>\n" if shown else "") + (
        "<h2>Cite</h2>\n<p>The method; name also the version of kslottery-fast given under Environment.</p>\n"
        f"<pre>{prose(CITATION)}</pre>"
    )


def _clipped(text: str) -> str:
    if not text.strip():
        return '<span class="none">(nothing)</span>'
    shown = prose(text[:MAX_SAMPLE_CHARS].replace("\n", "↵ "))
    if len(text) <= MAX_SAMPLE_CHARS:
        return shown
    return f'{shown}… <span class="none">({len(text):,} characters)</span>'
