"""Made-up data of the shape of a real run, for the tests of the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kslottery_fast.lab.report.report_data import ReportData, Shift, TicketRow

MODELS = {
    # nll, bleu_raw, bleu_first_line, chrf_raw, chrf_first_line, ended, mean_chars, trained_parameters
    "untuned": (3.558, 0.16, 1.45, 8.10, 14.20, 0.29, 201.0, 0),
    "embed_tuning": (1.781, 14.05, 18.11, 36.41, 39.02, 0.97, 36.4, 1_297_728),
    "partial_transfer": (2.178, 2.06, 6.03, 20.60, 24.18, 0.97, 41.0, 0),
    "partial_tuning": (1.863, 9.11, 10.90, 31.27, 32.04, 0.99, 35.2, 31_680),
    "frequency_tuning": (1.798, 10.53, 11.50, 32.90, 33.51, 0.99, 34.9, 31_680),
    "random_tuning": (3.524, 0.18, 1.65, 8.33, 14.71, 0.31, 196.5, 31_680),
}
KEYS = [
    "nll",
    "bleu_raw",
    "bleu_first_line",
    "chrf_raw",
    "chrf_first_line",
    "ended",
    "mean_chars",
    "trained_parameters",
]
TOKENS = [" Spanish", " list", " El", " de", " English", ".", " the", "\n", ":", " Translate", " to", " en", " la", "$"]


def realistic(tickets: int = 55, rows: int = 2200, d: int = 576, seed: int = 0) -> ReportData:
    """Data of the shape and size of the demo: D falls with frequency, with noise; alpha 0.05 cuts at 47/576."""
    rng = np.random.default_rng(seed)
    frequency = np.maximum(1, (9000 / np.arange(1, rows + 1) ** 1.05).astype(np.int64))
    score = np.log(frequency) / np.log(9000) + rng.gumbel(0, 0.09, rows)
    top = 47 / d
    order = np.argsort(-score, kind="stable")
    statistic = np.empty(rows)
    tail = top + 0.16 * np.linspace(1, 0, tickets) ** 2.2
    body = (top - 2 / d) * np.linspace(1, 0.12, rows - tickets) ** 1.6
    statistic[order] = np.rint(np.concatenate([tail, body]) * d) / d
    token_ids = np.arange(rows) * 17 + 11
    listed = [
        TicketRow(
            int(token_ids[row]),
            TOKENS[place] if place < len(TOKENS) else f" word{place}",
            float(statistic[row]),
            float(2 * np.exp(-d * statistic[row] ** 2)),
            int(frequency[row]),
            int(row) + 1,
        )
        for place, row in enumerate(order[:tickets])
    ]
    shifts = []
    for ticket in listed[:6]:
        before = rng.normal(0, 0.04, d).astype(np.float32)
        shifts.append(Shift(ticket.token_id, ticket.token, before, before + rng.normal(0.012, 0.04, d)))
    models = {name: dict(zip(KEYS, values, strict=True)) for name, values in MODELS.items()}
    return ReportData(
        title="KS-Lottery on SmolLM2-135M, English to Spanish",
        summary={
            "format": 1,
            "title": "KS-Lottery on SmolLM2-135M, English to Spanish",
            "settings": {
                "model": "smollm2",
                "corpus": "django+wagtail",
                "languages": "en-es",
                "alpha": 0.05,
                "steps": 120,
                "batch_size": 8,
                "learning_rate": 0.01,
                "seed": 0,
                "correction": None,
                "bfloat16": True,
            },
            "models": models,
            "intervals": {
                name: {key: _interval(key, value) for key, value in model.items() if key in KEYS[:7]}
                for name, model in models.items()
            },
            "signatures": {
                "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
                "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0",
            },
            "tickets": {
                "count": tickets,
                "alpha": 0.05,
                "selected_by": "alpha",
                "token_ids": [ticket.token_id for ticket in listed],
                "threshold": top,
                "dimension": d,
                "vocab_size": 49152,
                "active_rows": rows,
            },
            "certificate": certificate(),
            "findings": [
                "Partial Tuning of 55 of 49,152 rows reaches 95 % of the NLL gain of Embed Tuning.",
                "Frequency Tuning is better than the tickets in NLL (1.798 against 1.863); the intervals overlap.",
                "Random rows stay where the untuned model is.",
            ],
        },
        environment={
            "kslottery_fast": "0.1.0",
            "python": "3.11.2",
            "packages": {"torch": "2.13.0", "numpy": "2.3.1"},
            "cpu": "a processor, 2 cores, avx512",
            "seed": 0,
            "finished": "2026-11-21",
            "command": ["kslottery", "run", "--out", "runs/my run"],
        },
        active_token_ids=token_ids,
        statistic=statistic,
        frequency=frequency,
        threshold=top,
        tickets=listed,
        shifts=shifts,
        samples=[
            {
                "source": "Enter a valid email address.",
                "reference": "Introduzca una dirección de correo válida.",
                "untuned": "Enter a valid email address.\nEnglish: Enter a valid email address.\n" * 8,
                "embed_tuning": "Introduzca una dirección de correo electrónico válida.",
                "partial_transfer": "Enter una dirección de correo.",
                "partial_tuning": "Introduzca un correo válido.",
                "frequency_tuning": "Introduzca un correo electrónico.",
                "random_tuning": "Enter a valid email address.",
            },
            {
                "source": "Delete selected pages",
                "reference": "Eliminar las páginas seleccionadas",
                "untuned": "",
                "embed_tuning": "Eliminar páginas seleccionadas",
                "partial_transfer": "Eliminar selected pages",
                "partial_tuning": "Eliminar páginas",
                "frequency_tuning": "Eliminar las páginas",
                "random_tuning": "Delete selected pages",
            },
        ],
    )


def _interval(key: str, value: float) -> list[float]:
    if key == "ended":
        return [max(0, value - 0.06), min(1, value + 0.03)]
    return [value * (0.93 if key == "nll" else 0.82), value * (1.07 if key == "nll" else 1.21)]


def certificate(checked: bool = True) -> dict[str, Any]:
    alphas = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5)
    levels = []
    for place, alpha in enumerate(alphas):
        share = 0.22 + 0.055 * place
        levels.append(
            {
                "alpha": alpha,
                "tau": float(np.sqrt(-np.log(alpha / 2) / 576)),
                "certified_positions": int(1100 * share),
                "certified": share,
                "certified_accuracy": share * (0.97 - 0.015 * place),
                "violations": 3 + 7 * place if checked else None,
                "violating_sentences": 2 + 3 * place if checked else None,
                "violating_sentences_upper": 0.06 + 0.03 * place if checked else None,
            }
        )
    interval = {"value": 0.78, "low": 0.74, "high": 0.81}
    return {
        "dimension": 576,
        "positions": 1100,
        "sentences": 96,
        "accuracy": 0.655,
        "confidence": 0.95,
        "levels": levels,
        "checked": checked,
        "text": "...",
        "agreement": {"positions": interval, "sentences": {"value": 0.3, "low": 0.22, "high": 1.0}}
        if checked
        else None,
    }


def with_tickets(data: ReportData, **changes: Any) -> ReportData:
    """The same data with other entries in ``summary["tickets"]``."""
    return replace(data, summary={**data.summary, "tickets": {**data.summary["tickets"], **changes}})


def top_k(rows: int = 200, count: int = 18) -> ReportData:
    """Data where alpha selected nothing and the largest D were taken."""
    data = realistic(tickets=count, rows=rows)
    data = replace(data, statistic=np.rint(data.statistic * 576 / 4) / 576, threshold=47 / 576)
    data = replace(data, tickets=[replace(t, statistic=round(t.statistic * 576 / 4) / 576) for t in data.tickets])
    return with_tickets(data, selected_by="top_k", count=count)
