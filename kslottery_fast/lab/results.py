"""From finished stages to what a person takes away: summary, environment, tickets, adapter, report."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from kslottery_fast.evaluate import SCORES
from kslottery_fast.files import atomic_directory, read_json, write_json, write_safetensors
from kslottery_fast.ops import native
from kslottery_fast.stats import critical_count
from kslottery_fast.tickets import Tickets

from .console import RunConsole
from .controls import frequency_ranks
from .findings import findings
from .pipeline import STAGES
from .report import ReportData, Shift, TicketRow, write_report
from .run_folder import RunFolder
from .settings import RunSettings
from .stages import MODELS, Workshop, load_evaluation

FORMAT = 1
SHIFTS_SHOWN = 6
SAMPLES_SHOWN = 8


def write_results(settings: RunSettings, folder: RunFolder, command: str) -> None:
    """Write every product of the run (see ``pipeline.PRODUCTS``) from its finished stages, each whole or not at all."""
    path = folder.path
    corpus = read_json(folder.stage_path("corpus") / "corpus.json")
    evaluations = {name: load_evaluation(folder, name).to_dict() for name in MODELS}
    shop = Workshop(settings, folder, RunConsole())
    summary = _summary(settings, folder, shop, corpus, evaluations)
    environment = _environment(settings, folder, corpus, command)
    tickets, rows = shop.tickets(), shop.rows("partial_tuning")
    places = torch.searchsorted(rows.token_ids, tickets.token_ids)
    transferred = shop.model_rows("partial_transfer")
    assert transferred is not None

    tickets.save(path / "tickets.json")
    write_safetensors(
        path / "tickets.safetensors",
        {
            "token_ids": tickets.token_ids,
            "embed_tuned": transferred.rows,
            "partial_tuned": rows.rows[places],
        },
    )
    with atomic_directory(path / "adapter") as adapter:
        shutil.copytree(folder.stage_path("partial_tuning") / "adapter", adapter, dirs_exist_ok=True)
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
    statistics = load_file(folder.stage_path("select") / "statistics.safetensors")
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


def _environment(settings: RunSettings, folder: RunFolder, corpus: dict[str, Any], command: str) -> dict[str, Any]:
    packages = (
        "kslottery-fast",
        "torch",
        "transformers",
        "accelerate",
        "numpy",
        "scipy",
        "sacrebleu",
        "safetensors",
    )
    return {
        "command": command,
        "seed": settings.seed,
        "date": datetime.date.today().isoformat(),
        "model": {"name": corpus["model_name"], **corpus["model_provenance"]},
        "corpus": corpus["provenance"],
        "licences": corpus["licences"],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "system": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "kernels": native.info(),
        },
        "peak_memory_mb": round(peak_memory_bytes() / 1e6),
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
    statistics, tokens = load_file(select / "statistics.safetensors"), read_json(select / "tokens.json")
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


def cpu_name() -> str:
    """The CPU's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
