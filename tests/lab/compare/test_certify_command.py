"""``kslottery certify``: prints what is guaranteed, and refuses files that were tampered with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kslottery_fast.lab import cli
from kslottery_fast.tickets import Tickets


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished / "stages", tmp_path / "copy" / "stages")
    return tmp_path / "copy"


def refused(folder, capsys) -> str:
    assert cli.main(["certify", str(folder)]) == 2
    return capsys.readouterr().err


def test_every_cell_has_its_certificate_in_words_and_as_json(finished, capsys):
    assert cli.main(["certify", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Guarantee: with probability 95% over the draw of the sentences") == 2
    assert "is not a proof that the transfer model predicts the same token" in printed
    assert cli.main(["certify", str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["es.0.certificate", "es.1.certificate"]
    for certificate in found.values():
        share = certificate["agreement"]["share"]
        assert 0 <= share["low"] <= share["value"] <= share["high"] == 1


def test_a_ticket_file_with_another_token_is_refused(copy, capsys):
    path = copy / "stages" / "es.0.certificate" / "tickets.json"
    data = json.loads(path.read_text())
    data["token_ids"][0] = next(i for i in range(320) if i not in data["token_ids"])
    path.write_text(json.dumps(data))
    assert "digest" in refused(copy, capsys)


def test_a_ticket_file_made_anew_for_other_statistics_is_refused(copy, capsys):
    """A forger who recomputes the digest is caught by the evidence beside it."""
    path = copy / "stages" / "es.0.certificate" / "tickets.json"
    real = Tickets.load(path)
    fields = ("vocab_size", "dimension", "threshold_count", "alpha", "method")
    forged = {name: getattr(real, name) for name in fields}
    Tickets.from_counts(real.token_ids, torch.full_like(real.counts, real.dimension), **forged).save(path)
    assert "does not have this statistic in" in refused(copy, capsys)


def test_evidence_that_was_changed_is_refused(copy, capsys):
    path = copy / "stages" / "es.1.embed" / "evidence.safetensors"
    tensors = load_file(path)
    tensors["counts"] += 1
    save_file(tensors, path)
    assert "does not have this statistic in" in refused(copy, capsys)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tau", 0.0, "does not fit its own numbers"),
        ("certified", 1.0, "does not fit its own numbers"),
        ("violations", 10**6, "more violations than certified positions"),
    ],
)
def test_a_certificate_that_was_touched_up_is_refused(copy, capsys, field, value, message):
    path = copy / "stages" / "es.0.certificate" / "certificate.json"
    data = json.loads(path.read_text())
    data["levels"][0][field] = value
    path.write_text(json.dumps(data))
    assert message in refused(copy, capsys)


def test_a_folder_without_certificates_is_refused(tmp_path, capsys):
    assert "holds no certificate" in refused(tmp_path, capsys)
