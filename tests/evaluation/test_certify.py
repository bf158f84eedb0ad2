"""The criterion on hand-computed tables and scripted models; a transfer model that differs shows."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.basis import Basis
from kslottery_fast.evaluation.certificate import Certificate, CertificateLevel
from kslottery_fast.evaluation.certify import Predictions, certificate_from, certify, next_token_predictions
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.intervals import mean_lower_bound
from kslottery_fast.evaluation.logits import IGNORE_INDEX
from kslottery_fast.evaluation.reading import ReadTokens

D = 576
TAU = {
    0.05: math.sqrt(math.log(40) / 2 * 2 / D),
    0.5: math.sqrt(math.log(4) / 2 * 2 / D),
}  # 0.0800 and 0.0491


def predictions(
    predicted, margin=(0.9, 0.1, 0.15, 0.2, 0.05, 0.8), target=(1, 2, 3, 4, 5, 6), sentence=(0, 0, 1, 1, 1, 2)
):
    return Predictions(
        torch.tensor(predicted),
        torch.tensor(margin, dtype=torch.float64),
        torch.tensor(target),
        torch.tensor(sentence),
    )


# Half margins 0.45, 0.05, 0.075, 0.1, 0.025, 0.4: certified at 0.05 are 0, 3 and 5; at 0.5 also 1 and 2.
TUNED = predictions([1, 2, 9, 4, 5, 9])  # wrong at positions 2 and 5
TRANSFER = predictions([1, 7, 9, 7, 7, 9])  # differs at 1 (sentence 0), 3 and 4 (sentence 1)


# What the six positions read, from their sentences of 3, 4 and 2 tokens. Sentence 1 begins with the token 77.
READ = ReadTokens(
    torch.tensor([70, 1, 2, 77, 3, 4, 5, 70, 6]), torch.tensor([3, 4, 2]), torch.tensor([0, 1, 3, 4, 5, 7])
)


def test_a_certificate_computed_by_hand():
    certificate = certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05, 0.5])
    strict, loose = certificate.levels
    assert (strict.alpha, loose.alpha) == (0.05, 0.5)
    assert strict.tau == pytest.approx(TAU[0.05])
    assert loose.tau == pytest.approx(TAU[0.5])
    assert (strict.certified_positions, loose.certified_positions) == (3, 5)
    assert (strict.certified, loose.certified) == (pytest.approx(3 / 6), pytest.approx(5 / 6))
    assert (strict.certified_accuracy, loose.certified_accuracy) == (
        pytest.approx(2 / 6),
        pytest.approx(3 / 6),
    )
    assert (strict.violations, loose.violations) == (1, 2)
    assert (strict.violating_sentences, loose.violating_sentences) == (1, 2)
    for level in (strict, loose):
        wanted = binomtest(level.violating_sentences, 3, alternative="less").proportion_ci(0.95, method="exact")
        assert level.violating_sentences_upper == pytest.approx(wanted.high)
    assert (certificate.positions, certificate.sentences, certificate.dimension) == (6, 3, D)
    assert certificate.accuracy == pytest.approx(4 / 6)
    agreement = certificate.agreement
    assert agreement.positions.value == pytest.approx(3 / 6)
    assert agreement.sentences.value == pytest.approx(1 / 3)
    wanted = binomtest(1, 3, alternative="greater").proportion_ci(0.95, method="exact")
    assert agreement.sentences.low == pytest.approx(wanted.low)
    assert agreement.sentences.high == 1
    # Shares of agreeing positions: 1 of 2, 1 of 3, 1 of 1.
    assert agreement.share == mean_lower_bound([1 / 2, 1 / 3, 1.0], 0.95)
    assert agreement.share.value == pytest.approx(11 / 18)


def test_every_level_is_checked_against_the_transfer_model_of_its_own_rows(tmp_path):
    kept = Basis(torch.arange(3), torch.zeros(3, D), TUNED, {2: TRANSFER, 5: TUNED})
    kept.save(tmp_path)
    for basis in (kept, Basis.load(tmp_path)):
        found = basis.certificate({0.05: 2, 0.5: 5}, own=2, alpha=0.05, n_bootstrap=50)
        levels = [(level.alpha, level.transferred, level.violations) for level in found.levels]
        assert levels == [(0.05, 2, 1), (0.5, 5, 0)]
        whole = certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05], n_bootstrap=50)
        assert found.agreement == whole.agreement
        with pytest.raises(InputError, match="no predictions were kept of the transfer model with 7 rows"):
            basis.certificate({0.05: 2, 0.5: 7}, own=2, alpha=0.05)


def test_the_criterion_is_strict():
    """A half margin equal to tau is not certified, the next number above it is."""
    tau = certificate_from(TUNED, dimension=D, alphas=[0.05]).levels[0].tau
    edge = predictions([1] * 6, margin=[2 * tau, math.nextafter(2 * tau, 1), 0, 0, 0, 0])
    assert certificate_from(edge, dimension=D, alphas=[0.05]).levels[0].certified_positions == 1


def test_a_larger_alpha_certifies_no_less():
    torch.manual_seed(0)
    table = predictions([1] * 500, margin=torch.rand(500).tolist(), target=[1] * 500, sentence=range(500))
    levels = certificate_from(table, dimension=64, alphas=[0.001, 0.01, 0.05, 0.2, 0.5, 0.99]).levels
    certified = [level.certified_positions for level in levels]
    assert certified == sorted(certified)
    assert certified[0] < certified[-1]
    assert [level.tau for level in levels] == sorted((level.tau for level in levels), reverse=True)


def test_without_the_transfer_model_nothing_is_claimed_to_be_checked():
    certificate = certificate_from(TUNED, dimension=D, alphas=[0.05])
    level = certificate.levels[0]
    assert level.violations is level.violating_sentences is level.violating_sentences_upper is None
    assert certificate.agreement is None
    assert not certificate.checked
    assert "Not checked: the transfer model was not run." in str(certificate)
    assert "violations" not in str(certificate)


def test_two_equal_models_agree_with_a_bound_below_one():
    certificate = certificate_from(TUNED, TUNED, dimension=D, alphas=[0.5], n_bootstrap=50)
    assert certificate.levels[0].violations == 0
    assert certificate.levels[0].violating_sentences_upper == pytest.approx(1 - 0.05 ** (1 / 3))
    assert certificate.agreement.positions.low == certificate.agreement.positions.value == 1
    assert certificate.agreement.sentences.low == pytest.approx(0.05 ** (1 / 3))


def test_the_bound_counts_sentences_and_not_positions():
    """A thousand agreeing positions in one sentence are one observation."""
    table = predictions([1] * 1000, margin=[0.9] * 1000, target=[1] * 1000, sentence=[0] * 1000)
    certificate = certificate_from(table, table, dimension=D, alphas=[0.05])
    assert certificate.agreement.sentences.low == pytest.approx(0.05)
    assert certificate.levels[0].violating_sentences_upper == pytest.approx(0.95)


def test_sentences_without_a_supervised_position_do_not_count():
    gaps = Predictions(TUNED.predicted, TUNED.margin, TUNED.target, torch.tensor([3, 3, 5, 5, 5, 9]))
    assert certificate_from(gaps, gaps, dimension=D, alphas=[0.5]) == certificate_from(
        TUNED, TUNED, dimension=D, alphas=[0.5]
    )


def test_the_words_fit_the_numbers_and_promise_nothing():
    text = str(certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05, 0.5]))
    assert "alpha 0.05 (tau 0.0800): 50.0% certified, 33.3% certified and right. At 1 of the 3 certified" in text
    assert "It is not a proof" in text
    assert "predicts the same token at 50.0% of the positions" in text
    assert "guarantee" not in text


def level(alpha, violations, certified=100):
    return CertificateLevel(alpha, 0.1, certified, 0.5, 0.4, violations, 1, 0.5)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (
            [level(0.5, 5), level(0.05, 40), level(0.8, 1), level(0.1, 3), level(0.2, 20)],
            "wrong at 1.0% of its positions at alpha 0.8 and at 40.0% at alpha 0.05. It is wrong at 5% of them or "
            "fewer from alpha 0.5 on.",
        ),
        (
            [level(0.05, 1), level(0.5, 20)],
            "wrong at 1.0% of its positions at alpha 0.05 and at 20.0% at alpha 0.5. It is wrong at more than 5% of "
            "them at the largest alpha too.",
        ),
        (
            [level(0.05, 2), level(0.01, 0, certified=0)],
            "wrong at 2.0% of its positions at alpha 0.05.\nChecked",
        ),
    ],
)
def test_a_sentence_or_two_say_when_the_criterion_held(levels, said):
    """A level that certifies nothing has no share of violations."""
    certificate = replace(certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05]), levels=tuple(levels))
    assert f"In practice the criterion is {said}" in str(certificate)


def test_positions_that_read_no_row_that_differs_are_counted():
    reads = torch.tensor([0, 1, 1, 0, 1, 1]).bool()
    certificate = certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05], reads=reads)
    (found,) = certificate.levels
    assert (found.read_positions, found.read_violations) == (2, 1)  # position 3 differs, as if by rounding
    words = "2 positions (33.3%) read no row in which the models differ. Rounding changed the prediction at 1 of them."
    assert words in str(certificate)
    assert certificate_from(TUNED, dimension=D, alphas=[0.05], reads=reads).levels[0].read_violations is None
    assert Certificate.from_dict(certificate.to_dict()) == certificate
    basis = Basis(torch.arange(3), torch.zeros(3, D), TUNED, {2: TRANSFER}, READ)
    found = basis.certificate({0.05: 2}, own=2, alpha=0.05, differing={2: torch.tensor([77])}).levels[0]
    assert (found.read_positions, found.read_violations) == (3, 1)  # position 1 differs
    assert basis.certificate({0.05: 2}, own=2, alpha=0.05).levels[0].read_positions is None
    with pytest.raises(InputError, match="differing names no rows for the transfer model with 2 rows"):
        basis.certificate({0.05: 2}, own=2, alpha=0.05, differing={})


def test_a_certificate_survives_json():
    for transfer in (None, TRANSFER):
        certificate = certificate_from(TUNED, transfer, dimension=D, alphas=[0.05, 0.5])
        data = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
        assert Certificate.from_dict(data) == certificate
        assert data["checked"] is (transfer is not None)
        assert data["text"] == str(certificate)


def test_a_damaged_certificate_is_refused():
    good = certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05]).to_dict()
    for bad in (
        {},
        [],
        {**good, "more": 1},
        {**good, "levels": [{}]},
        {**good, "agreement": {"positions": {}}},
    ):
        with pytest.raises(InputError, match=r"data is not an? (certificate|interval): "):
            Certificate.from_dict(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("alphas", [[], [0.0], [1.0], [0.05, 5], [float("nan")], [-0.1]])
def test_alphas_outside_0_and_1_are_refused(alphas):
    with pytest.raises(InputError, match=r"alphas is the list \[.*\]: expected one or more numbers strictly between"):
        certificate_from(TUNED, dimension=D, alphas=alphas)


def test_other_bad_inputs_of_a_certificate_are_refused():
    with pytest.raises(InputError, match="dimension is 0: expected at least 1"):
        certificate_from(TUNED, dimension=0, alphas=[0.05])
    empty = predictions([], [], [], [])
    with pytest.raises(InputError, match="predictions is empty: nothing can be certified"):
        certificate_from(empty, dimension=D, alphas=[0.05])
    with pytest.raises(InputError, match="confidence is 95: expected a number strictly between 0 and 1"):
        certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05], confidence=95)


@pytest.mark.parametrize(
    "other",
    [
        predictions([1] * 6, target=(1, 2, 3, 4, 5, 7)),
        predictions([1] * 6, sentence=(0, 1, 1, 1, 1, 2)),
        predictions([1] * 5, [0.1] * 5, (1, 2, 3, 4, 5), (0, 0, 1, 1, 1)),
    ],
)
def test_predictions_of_other_positions_are_refused(other):
    message = rf"predictions and transfer are not of the same positions \(6 and {len(other)}\): give both"
    with pytest.raises(InputError, match=message):
        certificate_from(TUNED, other, dimension=D, alphas=[0.05])


@pytest.fixture
def batches(tiny_tokenizer):
    """Two batches, three sentences."""
    examples = [Example("x", " 1+2=3"), Example("y", "4*5-6"), Example("x", " 1+2")]
    features = [encode(tiny_tokenizer, example) for example in examples]
    return [collate(features[:2], 2), collate(features[2:], 2)]


@pytest.fixture
def script(tiny_tokenizer):
    x, y = tiny_tokenizer("x 1+2=3")["input_ids"], tiny_tokenizer("y4*5-6")["input_ids"]
    return dict(zip(x, [*x[1:], 2], strict=True)) | dict(zip(y, [*y[1:], 2], strict=True))


def test_predictions_equal_those_of_the_full_logits(tiny_llama, batches):
    model = tiny_llama()
    result = next_token_predictions(model, batches)
    rows = []
    for b, batch in enumerate(batches):
        with torch.no_grad():
            probabilities = (
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().softmax(-1)
            )
        for i, labels in enumerate(batch["labels"].tolist()):
            for t, label in enumerate(labels):
                if label != IGNORE_INDEX:
                    top = probabilities[i, t - 1].sort(descending=True)
                    rows.append((int(top.indices[0]), float(top.values[0] - top.values[1]), label, 2 * b + i))
    predicted, margin, target, sentence = zip(*rows, strict=True)
    assert result.predicted.tolist() == list(predicted)
    assert result.margin.tolist() == pytest.approx(list(margin), abs=1e-5)
    assert result.target.tolist() == list(target)
    assert result.sentence.tolist() == list(sentence)
    assert [getattr(result, name).dtype for name in ("predicted", "margin", "target", "sentence")] == [
        torch.int64,
        torch.float64,
        torch.int64,
        torch.int64,
    ]


def test_a_scripted_model_is_certified_where_it_follows_the_script(scripted_llama, script, batches):
    """18 positions: 7 + 6 + 5, all but the last right (the script goes on, the example ends)."""
    certificate = certify(scripted_llama(script), batches, alphas=[0.05])
    assert certificate.dimension == 320
    assert (certificate.positions, certificate.sentences) == (18, 3)
    assert certificate.levels[0].certified == 1
    assert certificate.accuracy == certificate.levels[0].certified_accuracy == pytest.approx(17 / 18)


def test_a_transfer_model_that_differs_shows_its_violations(scripted_llama, script, batches, tiny_tokenizer):
    """Another successor of "+" is wrong once in each of the two sentences that have it."""
    (plus,) = tiny_tokenizer("+")["input_ids"]
    model, other = scripted_llama(script), scripted_llama(script | {plus: 77})
    certificate = certify(model, batches, alphas=[0.05], transfer_model=other)
    assert certificate.levels[0].violations == 2
    assert certificate.levels[0].violating_sentences == 2
    assert certificate.agreement.positions.value == pytest.approx(16 / 18)
    assert certificate.agreement.sentences.value == pytest.approx(1 / 3)
    same = certify(model, batches, alphas=[0.05], transfer_model=scripted_llama(script))
    assert same.levels[0].violations == 0
    assert same.agreement.sentences.value == 1


def test_a_certificate_of_an_older_version_still_loads_and_makes_no_new_promise():
    data = json.loads(json.dumps(certificate_from(TUNED, TRANSFER, dimension=D, alphas=[0.05]).to_dict()))
    assert "Guarantee: with probability 95%" in data["text"]
    del data["agreement"]["share"]
    old = Certificate.from_dict(data)
    assert old.agreement.share is None
    assert "Guarantee" not in str(old)


def test_the_guarantee_of_models_that_agree_nowhere_is_nothing():
    other = predictions([11, 12, 13, 14, 15, 16])
    share = certificate_from(TUNED, other, dimension=D, alphas=[0.05]).agreement.share
    assert (share.value, share.low) == (0, 0)


def test_predictions_survive_their_file(tiny_llama, batches, tmp_path):
    result = next_token_predictions(tiny_llama(), batches)
    result.save(tmp_path / "p.safetensors")
    loaded = Predictions.load(tmp_path / "p.safetensors")
    for name in ("predicted", "margin", "target", "sentence"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))


def test_missing_foreign_and_tampered_prediction_files_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(InputError, match=r"p\.safetensors: no such file"):
        Predictions.load(path)
    path.write_text("no")
    with pytest.raises(InputError, match="is not a safetensors file"):
        Predictions.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds no predictions: expected a file that"):
        Predictions.load(path)
    good = {
        "predicted": TUNED.predicted,
        "margin": TUNED.margin,
        "target": TUNED.target,
        "sentence": TUNED.sentence,
    }
    for name, tensor, message in [
        ("margin", TUNED.margin.float(), r"margin is torch.float32 \[6\]"),
        ("predicted", TUNED.predicted[:5], r"predicted is torch.int64 \[5\]"),
        ("target", TUNED.target[:5].clone(), r"is torch.int64 \[6\]|is torch.float64 \[6\]"),
        ("margin", TUNED.margin * 3, "margins outside"),
        ("margin", TUNED.margin * float("nan"), "margins outside"),
        ("sentence", TUNED.sentence.flip(0), "sentences out of order"),
    ]:
        save_file({**good, name: tensor.contiguous()}, path, metadata={"kind": "kslottery-predictions"})
        with pytest.raises(InputError, match=message):
            Predictions.load(path)


def test_progress_counts_sentences_and_modes_are_left(tiny_llama, batches):
    model, seen = tiny_llama().train(), []
    next_token_predictions(model, batches, progress=lambda *at: seen.append(at))
    assert seen == [(2, 3), (3, 3)]
    assert model.training


def test_bad_batches_and_models_are_refused(tiny_llama, batches):
    model = tiny_llama()
    with pytest.raises(InputError, match="batches is empty: give at least one batch"):
        next_token_predictions(model, [])
    silent = {**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}
    with pytest.raises(InputError, match="batches supervise no position: every label is -100"):
        next_token_predictions(model, [silent])
    with pytest.raises(InputError, match="model, a Module, has no input embedding: certification is about its rows"):
        certify(torch.nn.Module(), batches, alphas=[0.05])
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(InputError, match="the model gives NaN: its training diverged"):
        next_token_predictions(model, batches)
