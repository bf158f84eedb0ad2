"""Made-up experiments of the shape of real ones, for the tests of the report."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kslottery_fast.lab.report import advice
from kslottery_fast.lab.report.row_figures import MovedRows, Shift
from kslottery_fast.lab.report.verdict import on_test, on_test_over, verdict, verdict_over
from kslottery_fast.lab.report.words import model_key, outcome_of, selection_of

ARMS = {
    # label; nll, bleu_raw, bleu_first_line, chrf_raw, chrf_first_line, ended, mean_chars; rows, trained, covered
    "untuned": ("Untuned", (3.558, 0.16, 1.45, 8.10, 14.20, 0.29, 201.0), 0, 0, 0.0),
    "embed": ("Embed Tuning", (1.781, 14.05, 18.11, 36.41, 39.02, 0.97, 36.4), 2200, 1_267_200, 1.0),
    "transfer@tickets": ("Partial Transfer (KS)", (2.178, 2.06, 6.03, 20.60, 24.18, 0.97, 41.0), 55, 0, 0.13),
    "partial@tickets": ("Partial Tuning (KS)", (1.863, 9.11, 10.90, 31.27, 32.04, 0.99, 35.2), 55, 31_680, 0.13),
    "frequency@tickets": ("Frequency Tuning", (1.798, 10.53, 11.50, 32.90, 33.51, 0.99, 34.9), 55, 31_680, 0.57),
    "random@tickets": ("Random rows", (3.524, 0.18, 1.65, 8.33, 14.71, 0.31, 196.5), 55, 31_680, 0.02),
}
METRICS = ("nll", "bleu_raw", "bleu_first_line", "chrf_raw", "chrf_first_line", "ended", "mean_chars")
TOKENS = [" Spanish", " list", " El", " de", " English", ".", " the", "\n", ":", " Translate", " to", " en", " la", "$"]


@dataclass(frozen=True)
class Sample:
    """The data of a page: ``summary.json``, ``environment.json``, and the rows of each language."""

    summary: dict[str, Any]
    environment: dict[str, Any]
    rows: dict[str, MovedRows]

    @property
    def spanish(self) -> dict[str, Any]:
        """The first language of the summary."""
        return self.summary["languages"]["es"]


def realistic(tickets: int = 55, rows: int = 2200, d: int = 576, seed: int = 0) -> Sample:
    """A plain run of the shape and size of the demo: D falls with frequency, with noise; alpha 0.05 cuts at 47/576."""
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
        {
            "token_id": int(token_ids[row]),
            "token": TOKENS[place] if place < len(TOKENS) else f" word{place}",
            "statistic": float(statistic[row]),
            "pvalue": float(2 * np.exp(-d * statistic[row] ** 2)),
            "count": int(frequency[row]),
            "rank": int(row) + 1,
            "in_template": None,
            "alone": None,
            "left_out": None,
        }
        for place, row in enumerate(order[:tickets])
    ]
    selection = {
        "count": tickets,
        "alpha": 0.05,
        "selected_by": "alpha",
        "token_ids": [ticket["token_id"] for ticket in listed],
        "threshold": top,
        "largest": float(statistic.max()),
        "dimension": d,
        "vocab_size": 49152,
        "active_rows": rows,
    }
    language = {
        "name": "Spanish",
        "arms": {spec: arm(spec) for spec in ARMS},
        "controls": [control(name, "tickets") for name in ("frequency", "random")],
        "tickets": ticket_facts(listed, tickets, rows),
        "selection": selection,
        "certificates": {"0": certificate()},
        "interpretation": {},
        "gain": {
            **interval(1.777, 0.05),
            "shares": {"transfer@tickets": interval(0.777, 0.04), "partial@tickets": interval(0.954, 0.03)},
        },
        "recommendation": recommendation("partial@tickets"),
        "selectors": [compared("tickets", 55, ks=1.863, frequency=1.798, random=3.524)],
        "samples": samples(),
    }
    shifts = []
    for ticket in listed[:6]:
        before = rng.normal(0, 0.04, d)
        shifts.append(Shift(ticket["token"], before, before + rng.normal(0.012, 0.04, d)))
    moved = MovedRows(token_ids, statistic, frequency, selection, listed, "", shifts)
    return finished({"es": language}, {"es": moved}, "SmolLM2-135M, English to Spanish")


def finished(languages: dict[str, Any], rows: dict[str, MovedRows], title: str) -> Sample:
    """Parts of a summary put together, with the sentences that follow from them."""
    for language in languages.values():
        said = {"advice": advice.sentences(language, None), "verdict": verdict(language)}
        language |= {**said, "on_test": on_test(language)}
    first = next(iter(languages.values()))
    seeds = [int(seed) for seed in first["certificates"]]
    models = {
        model_key(spec): {name: one["value"] for name, one in found["scores"].items()}
        for spec, found in first["arms"].items()
    }
    summary = {
        "format": "kslottery-summary/1",
        "version": "0.2.0",
        "title": title,
        "verdict": "",
        "on_test": "",
        "settings": {"model": "smollm2-135m", "alpha": 0.05, "learning_rate": 0.01, "seed": 0, "correction": None},
        "grid": {
            "arms": list(first["arms"]),
            "seeds": seeds,
            "targets": list(languages),
            "effects": 0,
            "margin": 0.1,
            "paraphrase": "paraphrased_against_untuned" in first["arms"]["embed"],
        },
        "signatures": {
            "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
            "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0",
        },
        "models": models,
        "tickets": first["selection"],
        "certificate": first["certificates"][str(seeds[0])],
        "findings": first["advice"],
        "languages": languages,
        "recommendation": first["recommendation"],
        "selectors": first["selectors"],
    }
    summary |= {"verdict": verdict_over(summary), "on_test": on_test_over(summary)}
    environment = {
        "command": "kslottery run --output 'runs/my run'",
        "commands": ["kslottery run --output 'runs/my run'"],
        "date": "2026-11-21",
        "packages": {"torch": "2.13.0", "numpy": "2.3.1"},
        "system": {"cpu": "a processor", "cores": 2},
    }
    moved = {code: replace(found, selection=selection_of(summary, code)) for code, found in rows.items()}
    return Sample(summary, environment, moved)


def comparison(*codes: str, seeds: int = 3, tickets: int = 55, rows: int = 300) -> Sample:
    """A comparison with several seeds and sizes, the paraphrase check, effects and positions. ``codes``: languages."""
    plain = realistic(tickets, rows)
    language = plain.spanish
    counts = [tickets, 90, 6][:seeds]
    for size in (18, 64):
        language["arms"] |= {f"{name}@{size}": arm(f"{name}@tickets", rows=size) for name in ("partial", "frequency")}
    language["arms"]["lora@18"] = {**arm("partial@tickets"), "label": "LoRA", "rows": [None], "coverage": [None]}
    for spec, found in language["arms"].items():
        if spec not in ("untuned", "embed"):
            found |= {name: found[name] * seeds for name in ("rows", "coverage", "trained_parameters")}
        if spec.endswith("@tickets"):
            found["rows"] = counts
        if spec != "untuned":
            found["paraphrased_against_untuned"] = {"bleu_first_line": interval(4.2, 0.8)}
    language["controls"] = [control("frequency", "18", seeds), control("frequency", "tickets", seeds)]
    language["certificates"] = {str(seed): certificate() for seed in range(seeds)}
    language["tickets"] |= ticket_facts(language["tickets"]["list"], counts, rows)
    for ticket in language["tickets"]["list"][:2]:
        ticket |= {"in_template": True, "alone": interval(0.0123, 0.002), "left_out": interval(0.004, 0.001)}
    part = {name: interval(0.3, 0.1) for name in ("shapley", "alone", "left_out")}
    parts = dict.fromkeys(("instruction", "source", "history"), part)
    language["interpretation"] = {"embed": {**parts, "gain": interval(0.9, 0.1)}}
    language["recommendation"] = recommendation("partial@64", "partial@18")
    trained = [compared(str(size), size, seeds, ks=1.863, frequency=1.798) for size in (18, 64)]
    language["selectors"] = [*trained, compared("tickets", 51, seeds, ks=1.863, frequency=1.798)]
    languages = {"es": language}
    for code in codes:
        languages[code] = {**copy.deepcopy(language), "name": {"ca": "Catalan"}.get(code, code)}
    title = f"SmolLM2-135M: {len(language['arms'])} arms, {seeds} training seeds"
    found = finished(languages, dict.fromkeys(languages, plain.rows["es"]), title)
    if codes:
        shown = ("label", "scores", "against_untuned", "against_embed", "decomposition")
        mean = {spec: {name: one[name] for name in shown if name in one} for spec, one in language["arms"].items()}
        names, size = list(languages), len(languages)
        overlap = {"names": names, "matrix": np.full((size, size), 0.4).tolist(), "of": "18 rows of largest D"}
        found.summary.update(mean=mean, language_overlap=overlap)
    return found


def interval(value: float, width: float) -> dict[str, float]:
    """A value and an interval of ``width`` on either side."""
    return {"value": value, "low": value - width, "high": value + width}


def arm(spec: str, rows: int | None = None) -> dict[str, Any]:
    """The entry of an arm, with one training seed."""
    label, values, own, trained, covered = ARMS[spec]
    found: dict[str, Any] = {
        "label": label,
        "rows": [own if rows is None else rows],
        "coverage": [covered],
        "trained_parameters": [trained if rows is None else rows * 576],
        "seconds": {"making": [231.0], "scoring": [40.0], "from_scratch": [462.0]},
        "peak_memory_mb": {"making": 1500, "scoring": 1200, "from_scratch": 1500},
        "scores": {name: _score(name, value) for name, value in zip(METRICS, values, strict=True)},
    }
    if spec != "untuned":
        parts = {"gain": interval(8.95, 1.1), "quality": interval(9.45, 1.2), "stopping": interval(-0.5, 0.4)}
        found |= {"against_untuned": {"nll": interval(values[0] - 3.558, 0.05)}, "decomposition": parts}
    if spec not in ("untuned", "embed"):
        found["against_embed"] = {"nll": interval(values[0] - 1.781, 0.03)}
    return found


def _score(name: str, value: float) -> dict[str, float]:
    if name == "ended":
        return {"value": value, "low": max(0, value - 0.06), "high": min(1, value + 0.03)}
    low, high = (0.93, 1.07) if name == "nll" else (0.82, 1.21)
    return {"value": value, "low": value * low, "high": value * high}


def control(name: str, size: str, seeds: int = 1, value: float = -0.065, width: float = 0.04) -> dict[str, Any]:
    """A control minus Partial Tuning of the same size."""
    difference = {"nll": interval(value, width), "bleu_raw": interval(1.4, 2), "bleu_first_line": interval(0.6, 2)}
    per_seed = [{"nll": value}] * seeds
    return {"control": f"{name}@{size}", "own": f"partial@{size}", "difference": difference, "per_seed": per_seed}


def compared(
    size: str,
    rows: float,
    seeds: int = 1,
    *,
    copied: bool = False,
    width: float = 0.04,
    options: str = "",
    **nll: float,
) -> dict[str, Any]:
    """The selectors of one size, with the NLL of each. All differences have intervals of ``width`` on either side."""
    start, end = "transfer" if copied else "partial", f"@{size}{options}"
    models = [
        {
            "selector": name,
            "arms": [(start if name == "ks" else f"{start}-{name}" if copied else name) + end],
            "nll": interval(value, 0.1),
            "range": None,
            "against": {
                other: _difference(value - nll[other], width, seeds)
                for other in ("frequency", "ks")
                if other in nll and other != name
            },
        }
        for name, value in nll.items()
    ]
    return {"size": size, "options": options, "copied": copied, "rows": rows, "models": models}


def _difference(value: float, width: float, seeds: int) -> dict[str, Any]:
    found, each = interval(value, width), [value] * seeds
    scores = {"nll": found, "bleu_raw": interval(-1.4, 2), "bleu_first_line": interval(-0.6, 2)}
    return {**scores, "per_seed": each, "outcome": outcome_of(found, each)}


def recommendation(*arms: str) -> dict[str, Any]:
    """The first of ``arms`` is recommended and keeps 95% of the gain; the others keep 80%."""
    kept = [
        {"arm": one, "rows": _size(one), **interval(0.95, 0.02), "test": interval(0.94, 0.02), "passes": True}
        for one in arms[:1]
    ]
    kept += [
        {"arm": one, "rows": _size(one), **interval(0.8, 0.02), "test": interval(0.79, 0.02), "passes": False}
        for one in arms[1:]
    ]
    return {"arm": arms[0], "rows": _size(arms[0]), "margin": 0.1, "kept": kept, "take": arms[0], "as_good": []}


def _size(spec: str) -> int:
    size = spec.partition("@")[2]
    return int(size) if size.isdecimal() else 55


def ticket_facts(listed: list[dict[str, Any]], counts: int | list[int], rows: int) -> dict[str, Any]:
    """The entry "tickets" of a language; ``counts``: those of the seeds at alpha = 0.05."""
    each = counts if isinstance(counts, list) else [counts]
    by_alpha = [(alpha, [round(factor * k) for k in each]) for alpha, factor in ((0.001, 0.2), (0.025, 0.8), (0.05, 1))]
    by_alpha += [(0.1, [round(1.3 * k) for k in each]), (0.8, [6 * k for k in each])]
    names = ["ks", "frequency", "random", "l2", "gradient"]
    return {
        "alpha": 0.05,
        "active_rows": [rows] * len(each),
        "dimension": 576,
        "by_alpha": [{"alpha": alpha, "counts": found} for alpha, found in by_alpha],
        "by_steps": [{"step": step, "counts": [k * step // 150 for k in each]} for step in (50, 100, 150)],
        "overlap_of_seeds": 0.4 if len(each) > 1 else None,
        "overlap_of": "18 rows of largest D",
        "overlap_of_selectors": {"rows": 55, "names": names, "matrix": (np.eye(5) * 0.7 + 0.3).tolist()},
        "list": listed,
    }


def certificate() -> dict[str, Any]:
    """A certificate of nine alphas."""
    levels = []
    for place, alpha in enumerate((1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5)):
        share = 0.22 + 0.055 * place
        levels.append(
            {
                "alpha": alpha,
                "tau": float(np.sqrt(-np.log(alpha / 2) / 576)),
                "transferred": 5 + 10 * place,
                "certified": share,
                "certified_accuracy": share * (0.97 - 0.015 * place),
                "violations": 3 + 7 * place,
                "violating_sentences": 2 + 3 * place,
                "violating_sentences_upper": 0.06 + 0.03 * place,
                "read_positions": 11 * place,
                "read_violations": 0,
            }
        )
    agreement = {"positions": interval(0.78, 0.03), "sentences": interval(0.3, 0.08), "share": interval(0.77, 0.05)}
    facts = {"dimension": 576, "positions": 1100, "sentences": 96, "accuracy": 0.655, "confidence": 0.95}
    return {**facts, "levels": levels, "agreement": agreement}


def samples() -> list[dict[str, str]]:
    """Two held-out pairs with the outputs of the models."""
    first = "Introduzca una dirección de correo electrónico válida."
    return [
        {
            "source": "Enter a valid email address.",
            "reference": "Introduzca una dirección de correo válida.",
            "untuned": "Enter a valid email address.\nEnglish: Enter a valid email address.\n" * 8,
            **{model_key(spec): first for spec in list(ARMS)[1:]},
        },
        {
            "source": "Delete selected pages",
            "reference": "Eliminar las páginas seleccionadas",
            "untuned": "",
            **{model_key(spec): "Eliminar páginas" for spec in list(ARMS)[1:]},
        },
    ]


def with_selection(data: Sample, **changes: Any) -> Sample:
    """The same experiment with other numbers of its selection."""
    language = {**data.spanish, "selection": {**data.spanish["selection"], **changes}}
    moved = replace(data.rows["es"], facts=language["selection"])
    return finished({**data.summary["languages"], "es": language}, {**data.rows, "es": moved}, data.summary["title"])


def top_k(rows: int = 200, count: int = 18) -> Sample:
    """A run in which alpha selected nothing, so that the rows of largest D were taken."""
    data = realistic(tickets=count, rows=rows)
    smaller = np.rint(data.rows["es"].statistic * 576 / 4) / 576
    for ticket in data.spanish["tickets"]["list"]:
        ticket["statistic"] = round(ticket["statistic"] * 576 / 4) / 576
    data = replace(data, rows={"es": replace(data.rows["es"], statistic=smaller)})
    return with_selection(data, selected_by="top_k", threshold=47 / 576, largest=float(smaller.max()))
