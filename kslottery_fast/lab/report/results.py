"""From finished stages to what a person takes away: summary, environment, tickets, adapter, report."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch

from kslottery_fast.base.files import atomic_directory, read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.evaluation.evaluate import SCORES
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.controls import frequency_ranks
from kslottery_fast.lab.experiment.environment import combined
from kslottery_fast.lab.experiment.pipeline import STAGES
from kslottery_fast.lab.experiment.run_folder import RunFolder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.stages import MODELS, load_evaluation
from kslottery_fast.lab.experiment.workshop import Workshop
from kslottery_fast.tickets.tickets import Tickets

from .findings import findings
from .report import write_report
from .report_data import ReportData, Shift, TicketRow

FORMAT = 1
SHIFTS_SHOWN = 6
SAMPLES_SHOWN = 8


def write_results(settings: RunSettings, folder: RunFolder) -> None:
    """Write every product of the run (see ``pipeline.PRODUCTS``) from its finished stages, each whole or not at all."""
    path = folder.path
    corpus = read_json(folder.stage_path("corpus") / "corpus.json")
    evaluations = {name: load_evaluation(folder, name).to_dict() for name in MODELS}
    shop = Workshop(settings, folder, RunConsole())
    summary = _summary(settings, folder, shop, corpus, evaluations)
    environment = _environment(settings, folder, corpus)
    tickets, rows = shop.tickets(), shop.rows("partial_tuning")
    transferred = shop.model_rows("partial_transfer")
    assert transferred is not None

    tickets.save(path / "tickets.json")
    write_safetensors(
        path / "tickets.safetensors",
        {
            "token_ids": tickets.token_ids,
            "embed_tuned": transferred.rows,
            "partial_tuned": rows.only(tickets.token_ids).rows,
        },
        {"selected_by": tickets.selected_by},
    )
    with atomic_directory(path / "adapter") as adapter:
        for file in (folder.stage_path("partial_tuning") / "adapter").iterdir():
            shutil.copyfile(file, adapter / file.name)
        tickets.save(adapter / "tickets.json")  # PEFT passes it over; a person sees how the rows were chosen
    write_json(path / "environment.json", environment)
    write_report(path, _report_data(folder, shop, corpus, evaluations, summary, environment))
    # Last: who finds a summary finds everything else beside it.
    write_json(path / "summary.json", summary)


def _summary(
    settings: RunSettings,
    folder: RunFolder,
    shop: Workshop,
    corpus: dict[str, Any],
    evaluations: dict[str, Any],
) -> dict[str, Any]:
    tickets, tuned = shop.tickets(), shop.rows("embed_tuning")
    statistics = read_safetensors(folder.stage_path("select") / "statistics.safetensors")
    dimension = tuned.rows.shape[1]
    models = {}
    for name, evaluation in evaluations.items():
        rows = None if name == "partial_transfer" else shop.model_rows(name)
        trained = 0 if rows is None else rows.rows.numel()
        models[name] = {metric: evaluation[metric]["value"] for metric in SCORES} | {"trained_parameters": trained}
    summary: dict[str, Any] = {
        "format": FORMAT,
        "title": f"{corpus['model_name']}, {corpus['source_language']['name']} to {corpus['target_language']['name']}",
        "settings": settings.to_dict(),
        "models": models,
        "intervals": {
            name: {metric: [evaluation[metric]["low"], evaluation[metric]["high"]] for metric in SCORES}
            for name, evaluation in evaluations.items()
        },
        "signatures": evaluations["untuned"]["signatures"],
        "tickets": {
            "count": len(tickets),
            "alpha": settings.alpha,
            "selected_by": tickets.selected_by,
            "token_ids": tickets.token_ids.tolist(),
            "threshold": _threshold(settings, len(statistics["counts"]), dimension, tickets),
            "largest": float(statistics["counts"].max()) / dimension,
            "dimension": dimension,
            "vocab_size": tickets.vocab_size,
            "active_rows": len(tuned.token_ids),
        },
        "certificate": read_json(folder.stage_path("certify") / "certificate.json"),
    }
    summary["findings"] = findings(summary, evaluations, n_bootstrap=settings.n_bootstrap, seed=settings.seed)
    summary["seconds"] = {name: folder.seconds(name) for name, _ in STAGES}
    return summary


def _threshold(settings: RunSettings, rows: int, dimension: int, tickets: Tickets) -> float | None:
    """The smallest D that is significant at the run's alpha, also where top_k had to choose."""
    if tickets.selected_by == "alpha":
        return tickets.threshold
    alpha = settings.alpha / tickets.vocab_size if settings.correction else settings.alpha
    return critical_count(dimension, alpha, settings.method) / dimension


def _environment(settings: RunSettings, folder: RunFolder, corpus: dict[str, Any]) -> dict[str, Any]:
    return {
        **combined([folder.record(name)["environment"] for name, _ in STAGES]),
        "seed": settings.seed,
        "model": {"name": corpus["model_name"], **corpus["model_provenance"]},
        "corpus": corpus["provenance"],
        "licences": corpus["licences"],
        "seconds": {name: folder.seconds(name) for name, _ in STAGES},
    }


def _report_data(
    folder: RunFolder,
    shop: Workshop,
    corpus: dict[str, Any],
    evaluations: dict[str, Any],
    summary: dict[str, Any],
    environment: dict[str, Any],
) -> ReportData:
    select = folder.stage_path("select")
    statistics, tokens = read_safetensors(select / "statistics.safetensors"), read_json(select / "tokens.json")
    tickets, tuned = shop.tickets(), shop.rows("embed_tuning")
    frequency = statistics["frequency"]
    places = torch.searchsorted(tuned.token_ids, tickets.token_ids).tolist()
    ranks = frequency_ranks(frequency)
    rows = [
        TicketRow(
            token_id=int(token_id),
            token=token,
            statistic=float(statistic),
            pvalue=float(pvalue),
            count=int(frequency[place]),
            rank=int(ranks[place]),
        )
        for token_id, token, statistic, pvalue, place in zip(
            tickets.token_ids, tokens, tickets.statistic, tickets.pvalue, places, strict=True
        )
    ]
    shifts = [
        Shift(
            row.token_id,
            row.token,
            before.numpy().astype(np.float64),
            tuned.rows[place].numpy().astype(np.float64),
        )
        for row, before, place in zip(rows, statistics["tickets_before"], places, strict=True)
    ][:SHIFTS_SHOWN]
    samples = [
        {
            "source": pair["source"],
            "reference": pair["target"],
            **{name: evaluation["outputs"][i]["text"] for name, evaluation in evaluations.items()},
        }
        for i, pair in enumerate(corpus["test"][:SAMPLES_SHOWN])
    ]
    return ReportData(
        title=summary["title"],
        summary=summary,
        environment=environment,
        active_token_ids=tuned.token_ids.numpy(),
        statistic=statistics["counts"].numpy() / summary["tickets"]["dimension"],
        frequency=frequency.numpy(),
        threshold=summary["tickets"]["threshold"],
        tickets=rows,
        shifts=shifts,
        samples=samples,
    )
