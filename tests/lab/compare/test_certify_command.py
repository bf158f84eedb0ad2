"""``kslottery certify``: prints what is guaranteed, and refuses files that were tampered with."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.evaluation.basis import Basis
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment import run_settings
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.tickets.evidence import SELECTORS
from kslottery_fast.tickets.tickets import Tickets


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished / "stages", tmp_path / "copy" / "stages")
    shutil.copy(finished / "run.json", tmp_path / "copy")
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


def forge_tickets(path, counts=None, **changes) -> None:
    """Write a ticket file whose digest is right."""
    real = Tickets.load(path)
    fields = ("vocab_size", "dimension", "threshold_count", "alpha", "method")
    values = {name: getattr(real, name) for name in fields} | changes
    Tickets.from_counts(real.token_ids, real.counts if counts is None else counts(real), **values).save(path)


def test_a_ticket_file_made_anew_for_other_statistics_is_refused(copy, capsys):
    """A forger who recomputes the digest is caught by the rows."""
    path = copy / "stages" / "es.0.certificate" / "tickets.json"
    forge_tickets(path, lambda real: torch.full_like(real.counts, real.dimension))
    assert "these are not the tickets that the statistics give at alpha 0.3" in refused(copy, capsys)


def test_a_ticket_file_made_anew_for_another_threshold_is_refused(copy, capsys):
    path = copy / "stages" / "es.0.certificate" / "tickets.json"
    forge_tickets(path, threshold_count=int(Tickets.load(path).threshold_count) - 1)
    assert "these are not the tickets that the statistics give" in refused(copy, capsys)


def forge_tensors(path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


def test_forged_counts_are_refused(copy, capsys):
    forge_tensors(
        copy / "stages" / "es.1.embed" / "evidence.safetensors", lambda tensors: tensors["counts"][:1].add_(1)
    )
    assert "its rows before and after Embed Tuning give" in refused(copy, capsys)


@pytest.mark.parametrize(
    ("stage", "name"), [("es.0.embed", "rows.safetensors"), ("es.0.certificate", "before.safetensors")]
)
def test_forged_rows_are_refused(copy, capsys, stage, name):
    forge_tensors(copy / "stages" / stage / name, lambda tensors: tensors["rows"][3].add_(100))
    assert "its rows before and after Embed Tuning give" in refused(copy, capsys)


def test_rows_of_other_tokens_are_refused(copy, capsys):
    forge_tensors(copy / "stages" / "es.0.embed" / "rows.safetensors", lambda tensors: tensors["token_ids"][-1].add_(1))
    assert "is about other rows than" in refused(copy, capsys)


def forge_certificate(folder, change) -> None:
    path = folder / "stages" / "es.0.certificate" / "certificate.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_forged_guarantee_is_refused(copy, capsys):
    forge_certificate(copy, lambda data: data["agreement"]["share"].update(value=1.0, low=0.999))
    error = refused(copy, capsys)
    assert "agreement.share.value is 1.0, but the files that it follows from give 0." in error


@pytest.fixture
def sure(copy):
    """A copy in which the embed-tuned model was sure of everything, so that its certificate counts violations."""
    stage = copy / "stages" / "es.0.certificate"
    (stage / "read.safetensors").unlink()  # as in an older folder
    forge_tensors(stage / "predictions.safetensors", lambda tensors: tensors["margin"].fill_(0.99))
    levels = {level["alpha"]: level["transferred"] for level in read_json(stage / "certificate.json")["levels"]}
    settings = RunSettings(**read_json(copy / "run.json")["settings"])
    own = len(Tickets.load(stage / "tickets.json"))
    options = {"alpha": settings.alpha, "n_bootstrap": settings.n_bootstrap, "seed": settings.seed}
    write_json(stage / "certificate.json", Basis.load(stage).certificate(levels, own=own, **options).to_dict())
    return copy


def test_forged_violations_are_refused(sure, capsys):
    """The level with the most violations is said to have none, in all its fields."""
    assert cli.main(["certify", str(sure)]) == 0
    assert capsys.readouterr().out.count("In practice the criterion is wrong at") == 1  # the other has no level

    def change(data):
        level = max(data["levels"], key=lambda level: level["violations"])
        assert level["violations"] > 0
        level.update(violations=0, violating_sentences=0, violating_sentences_upper=0.1)

    forge_certificate(sure, change)
    assert ".violations is 0, but the files that it follows from give" in refused(sure, capsys)


@pytest.mark.parametrize(
    ("field", "value"),
    [("tau", 0.0), ("certified", 1.0), ("certified_accuracy", 1.0), ("alpha", 0.002), ("transferred", None)],
)
def test_a_level_that_was_touched_up_is_refused(copy, capsys, field, value):
    forge_certificate(copy, lambda data: data["levels"][0].update({field: value}))
    assert f"levels[0].{field} is {value}, but the files that it follows from give" in refused(copy, capsys)


def test_a_level_that_was_dropped_is_refused(copy, capsys):
    forge_certificate(copy, lambda data: data["levels"].pop())
    assert "certificate.json: levels is" in refused(copy, capsys)


def test_a_folder_with_the_longer_curve_of_version_0_1_is_checked_too(
    copy, finished, finished_arguments, capsys, monkeypatch
):
    shutil.rmtree(copy / "stages" / "es.0.certificate")
    monkeypatch.setattr(run_settings, "ALPHA_GRID", run_settings.FORMER_ALPHA_GRID)
    assert cli.main([str(copy) if word == str(finished) else word for word in finished_arguments]) == 0
    monkeypatch.undo()
    levels = read_json(copy / "stages" / "es.0.certificate" / "certificate.json")["levels"]
    assert [level["alpha"] for level in levels] == sorted({0.3, *run_settings.FORMER_ALPHA_GRID})
    assert cli.main(["certify", str(copy)]) == 0
    forge_certificate(copy, lambda data: data["levels"][1].update(certified=1.0))
    assert "levels[1].certified is 1.0, but the files that it follows from give" in refused(copy, capsys)


def test_forged_predictions_are_refused(copy, capsys):
    """The transfer model's are replaced by those of the embed-tuned model: it would agree everywhere."""
    stage = copy / "stages" / "es.0.certificate"
    rows = len(Tickets.load(stage / "tickets.json"))
    shutil.copy(stage / "predictions.safetensors", stage / f"predictions-{rows}.safetensors")
    assert "but the files that it follows from give" in refused(copy, capsys)


def test_predictions_that_were_removed_are_named(copy, capsys):
    stage = copy / "stages" / "es.0.certificate"
    rows = len(Tickets.load(stage / "tickets.json"))
    (stage / f"predictions-{rows}.safetensors").unlink()
    assert f"no predictions were kept of the transfer model with {rows} rows" in refused(copy, capsys)


def test_settings_that_were_changed_are_refused(copy, capsys):
    path = copy / "run.json"
    path.write_text(path.read_text().replace('"alpha": 0.3', '"alpha": 0.2'))
    assert "these are not the tickets that the statistics give at alpha 0.2" in refused(copy, capsys)


def test_every_level_counts_the_positions_that_read_no_row_that_differs(finished, capsys):
    """The rows that differ are those that moved and that the level does not select."""
    stage = finished / "stages" / "es.0.certificate"
    basis, tuned = Basis.load(stage), load_file(finished / "stages" / "es.0.embed" / "rows.safetensors")
    moved = tuned["token_ids"][(basis.before.float() != tuned["rows"]).any(dim=1)]
    counts = load_file(finished / "stages" / "es.0.embed" / "evidence.safetensors")["counts"]
    by_d = tuned["token_ids"][torch.sort(counts, descending=True, stable=True).indices]
    for level in read_json(stage / "certificate.json")["levels"]:
        left_out = moved[~torch.isin(moved, by_d[: level["transferred"]])]
        assert level["read_positions"] == int((~basis.tokens.reads(left_out)).sum())
        assert level["read_violations"] == 0
    assert cli.main(["certify", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "read no row in which the models differ: there they must agree." in printed


def test_the_rows_of_every_selector_are_certified_at_equal_sizes(copy, capsys):
    """Transfer of the four rows of largest D is an arm too, and agrees with what the command says about it."""
    assert cli.main(["certify", str(copy), "--selectors", "4,7", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["es.0.certificate", "es.1.certificate"]
    chosen = [(one["selected_by"], one["rows"]) for one in found["es.0.certificate"]]
    assert chosen == [(name, size) for size in (4, 7) for name in (*SELECTORS, "contribution")]
    evidence = load_file(copy / "stages" / "es.0.embed" / "evidence.safetensors")
    by_d = evidence["counts"].sort(descending=True).values
    ks = found["es.0.certificate"][chosen.index(("ks", 4))]
    assert ks["level"]["tau"] == int(by_d[4]) / 32
    for one in found["es.0.certificate"]:
        assert one["level"]["tau"] >= int(by_d[one["rows"]]) / 32  # no selector leaves out less than D does
        assert one["level"]["read_violations"] == 0
        assert 0 <= one["agreement"]["share"]["low"] <= one["agreement"]["share"]["value"] <= 1
    assert cli.main(["certify", str(copy), "--selectors", "4", "--quiet"]) == 0
    assert {len(line) for line in capsys.readouterr().out.splitlines() if " " in line} == {12 + 7 * 12}  # in columns
    assert cli.main(["certify", str(copy), "--selectors", "99999", "--quiet"]) == 2
    assert "rows can be chosen by" in capsys.readouterr().err


def test_forged_tokens_and_counts_of_reading_are_refused(copy, capsys):
    forge_certificate(copy, lambda data: data["levels"][0].update(read_positions=10**6))
    assert "levels[0].read_positions is 1000000, but the files that it follows from give" in refused(copy, capsys)
    path = copy / "stages" / "es.0.certificate" / "read.safetensors"
    forge_tensors(path, lambda tensors: tensors["input_ids"].add_(1))
    assert "not of the same positions as the predictions" in refused(copy, capsys)


def test_a_folder_of_a_version_that_kept_no_tokens_is_accepted(copy, capsys):
    for stage in (copy / "stages").glob("*.certificate"):
        (stage / "read.safetensors").unlink()
        data = read_json(stage / "certificate.json")
        for level in data["levels"]:
            del level["read_positions"], level["read_violations"]
        write_json(stage / "certificate.json", data)
    assert cli.main(["certify", str(copy)]) == 0
    assert "read no row" not in capsys.readouterr().out


def test_a_certificate_of_an_older_version_says_how_to_make_it_anew(copy, finished, finished_arguments, capsys):
    """After its folder was removed, the same command makes the same certificate again, and nothing else."""
    stage = copy / "stages" / "es.0.certificate"
    (stage / "predictions.safetensors").unlink()
    assert "remove that folder and run the command that made it again" in refused(copy, capsys)
    before = {path.parent.name: path.stat().st_mtime_ns for path in copy.glob("stages/*/stage.json")}
    shutil.rmtree(stage)
    command = [str(copy) if word == str(finished) else word for word in finished_arguments]
    assert cli.main(command) == 0
    assert cli.main(["certify", str(copy)]) == 0
    assert (stage / "certificate.json").read_bytes() == (
        finished / "stages" / stage.name / "certificate.json"
    ).read_bytes()
    after = {path.parent.name: path.stat().st_mtime_ns for path in copy.glob("stages/*/stage.json")}
    assert {name for name in before if before[name] != after[name]} == {"es.0.certificate"}


def test_a_folder_without_certificates_is_refused(tmp_path, capsys):
    assert "holds no experiment" in refused(tmp_path, capsys)
