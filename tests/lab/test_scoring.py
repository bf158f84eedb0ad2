"""Scores of an arm: what is written, and what a person sees meanwhile."""

from types import SimpleNamespace

from kslottery_fast.base.files import read_json
from kslottery_fast.evaluation.encoding import Example
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.scoring import PARAPHRASE, SCORE, score

EXAMPLES = {"test": [Example("The house", " La casa")] * 3, "validation": [Example("The dog", " El perro")] * 2}


def scored(tiny_llama, tiny_tokenizer, folder, stage):
    """The progress of a scoring, as (done, total, note)."""
    shop = SimpleNamespace(
        settings=RunSettings(max_new_tokens=2, n_bootstrap=5, eval_batch_size=2),
        loaded=SimpleNamespace(tokenizer=tiny_tokenizer),
        examples=lambda split, _template=None: EXAMPLES[split],
    )
    seen = []
    score(shop, tiny_llama(), stage, folder, lambda *step: seen.append(step))
    return seen


def test_progress_ends_with_the_validation_nll_and_not_before_it(tiny_llama, tiny_tokenizer, tmp_path):
    seen = scored(tiny_llama, tiny_tokenizer, tmp_path, SCORE)
    assert {total for _, total, _ in seen} == {2 * 3 + 2}
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert list(dict.fromkeys(note for *_, note in seen)) == ["test NLL", "translations", "intervals", "validation NLL"]
    assert seen[-1] == (8, 8, "validation NLL")
    assert [done for done, _, note in seen if note == "intervals"] == [6]
    assert len(read_json(tmp_path / "validation.json")["sentence_nll"]) == 2


def test_a_paraphrase_has_no_validation(tiny_llama, tiny_tokenizer, tmp_path):
    seen = scored(tiny_llama, tiny_tokenizer, tmp_path, PARAPHRASE)
    assert seen[-1] == (6, 6, "intervals")
    assert [path.name for path in tmp_path.iterdir()] == ["paraphrased.json"]
