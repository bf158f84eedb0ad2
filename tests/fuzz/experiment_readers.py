"""Readers of the folders and files of experiments and scans."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from reader import D, Reader, V, described, each, model, table, tuned
from safetensors.torch import save_file

from kslottery_fast.base.files import read_json, write_json


def _make_run(folder: Path) -> None:
    from kslottery_fast.lab.experiment.run_settings import RunSettings
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    settings = ExperimentSettings.of_run(RunSettings(model="tiny", seed=3))
    header = {"format": "kslottery-experiment/1", "settings": settings.binding, "grid": settings.grid}
    write_json(folder / "run.json", header)
    arm = {"scores": {"nll": {"value": 2.3, "low": 2.1, "high": 2.4}}}
    results = {
        "format": "kslottery-summary/1",
        "title": "tiny, English to Spanish",
        "tickets": {"count": 7, "selected_by": "alpha", "token_ids": [1, 2]},
        "languages": {"es": {"name": "Spanish", "arms": {"untuned": arm}}},
    }
    write_json(folder / "summary.json", {**header, **results})
    write_json(
        folder / "environment.json", {"packages": {"torch": "2"}, "system": {"cpu": "x"}, "command": "kslottery"}
    )
    stage = folder / "stages" / "es.3.embed"
    stage.mkdir(parents=True)
    write_json(stage / "stage.json", {"stage": "es.3.embed", "seconds": 1.5, "environment": {"packages": {}}})


def _read_run(folder: Path) -> None:
    from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    each(
        lambda: described(folder),
        *(lambda path=path: described(path) for path in sorted(folder.rglob("*.json"))),  # type: ignore[misc]
        lambda: ExperimentSettings.recorded(read_header(folder), folder),
        lambda: described(folder / "stages" / "es.3.embed"),
        lambda: RunFolder(folder).seconds("es.3.embed"),
    )


def _make_claim(folder: Path) -> None:
    claims = folder / "claims"
    claims.mkdir()
    (claims / "es.embed.1").write_text(json.dumps({"machine": "m", "pid": 1, "born": "7", "name": "n"}))
    write_json(folder / "run.json", {})


def _read_claim(folder: Path) -> None:
    from kslottery_fast.lab.experiment.claims import Claims

    claims = Claims(folder / "claims")
    each(lambda: claims.held("es.embed"), lambda: described(folder / "claims" / "es.embed.1"))


def _make_scan(folder: Path) -> None:
    from kslottery_fast.tickets.scan import scan_checkpoints

    for name, values in (("a", table(0)), ("b", tuned())):
        save_file(model(values), folder / f"{name}.safetensors")
    scan = scan_checkpoints(folder / "a.safetensors", folder / "b.safetensors")
    write_json(folder / "scan.json", scan.to_json())


def _read_scan(folder: Path) -> None:
    from kslottery_fast.tickets.scan_result import Scan

    def load() -> None:
        scan = Scan.load(folder)
        scan.to_csv()
        scan.legend()

    each(load, lambda: described(folder))


def _make_results(folder: Path) -> None:
    from kslottery_fast.evaluation.basis import Basis
    from kslottery_fast.evaluation.contribution_result import RowContributions
    from kslottery_fast.evaluation.evaluate import Evaluation
    from kslottery_fast.evaluation.generation import GeneratedText
    from kslottery_fast.evaluation.intervals import Interval
    from kslottery_fast.evaluation.likelihood import TargetNll
    from kslottery_fast.evaluation.predictions import Predictions
    from kslottery_fast.evaluation.reading import read_tokens
    from kslottery_fast.lab.experiment.scoring import TEST, VALIDATION
    from kslottery_fast.lab.experiment.trained import TrainedRows
    from kslottery_fast.tickets.evidence import Evidence

    ids = torch.tensor([3, 5, 7])
    half, other = torch.full((2, 3), 0.5).double()
    half, other = half.clone(), other.clone()
    TrainedRows(ids, table(0, 3), [1.5, 0.5]).save(folder)
    Evidence(ids, torch.tensor([4, 2, 1]), half, other, ids.clone(), V, D, ((2, ids),)).save(folder)
    RowContributions(ids, half, half, V, "gauss", half, half, 40, 3.5, 1.5).save(folder / "contributions.safetensors")
    predictions = Predictions(ids, half, ids, torch.tensor([0, 0, 1]))
    labels = torch.tensor([[-100, -100, 5, 7]])
    tokens = read_tokens([{"input_ids": torch.tensor([[3, 4, 5, 7]]), "labels": labels}])
    Basis(ids, table(0, 3), predictions, {3: predictions}, tokens).save(folder)
    score = Interval(2.0, 1.5, 2.5)
    texts = [GeneratedText("la casa", True, 3)]
    evaluation = Evaluation(*[score] * 7, texts, [6.0], [3], {"bleu": "x"})
    write_json(folder / TEST, asdict(evaluation))
    write_json(folder / VALIDATION, TargetNll(score, [6.0], [3]).to_dict())
    level = {"alpha": 0.05, "tau": 0.08, "certified_positions": 40, "certified": 0.8, "certified_accuracy": 0.6}
    level |= {"violations": 10, "violating_sentences": 4, "violating_sentences_upper": 0.6}
    share = score.to_dict()
    certificate = {"dimension": D, "positions": 50, "sentences": 5, "accuracy": 0.8, "confidence": 0.95}
    certificate |= {"levels": [level], "agreement": {"positions": share, "sentences": share, "share": share}}
    write_json(folder / "certificate.json", certificate)


def _read_results(folder: Path) -> None:
    from kslottery_fast.evaluation.basis import Basis
    from kslottery_fast.evaluation.certificate import Certificate
    from kslottery_fast.evaluation.contribution_result import RowContributions
    from kslottery_fast.lab.experiment.scoring import load_nll, load_scores
    from kslottery_fast.lab.experiment.trained import TrainedRows
    from kslottery_fast.tickets.evidence import Evidence

    each(
        lambda: TrainedRows.load(folder),
        lambda: Evidence.load(folder),
        lambda: RowContributions.load(folder / "contributions.safetensors").summary(),
        lambda: Basis.load(folder),
        lambda: Certificate.from_dict(read_json(folder / "certificate.json")),
        lambda: load_nll(folder),
        lambda: load_scores(folder),
        *(lambda path=path: described(path) for path in sorted(folder.glob("*.safetensors"))),  # type: ignore[misc]
    )


EXPERIMENTS: dict[str, Reader] = {
    "run": Reader(_make_run, _read_run),
    "claim": Reader(_make_claim, _read_claim, "es.*"),
    "scan": Reader(_make_scan, _read_scan, "scan.json"),
    "results": Reader(_make_results, _read_results),
}
