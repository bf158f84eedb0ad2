"""Tickets of the output head: of models in memory, of checkpoints, and of their files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import save_file
from scipy.stats import ks_2samp
from tiny_models import make
from torch import nn

from kslottery_fast import (
    InputError,
    Tickets,
    attach_rows,
    get_rows,
    ks_select,
    ks_select_rows,
    merge_rows,
    transfer_rows,
)
from kslottery_fast.checkpoints.tensor_names import HEAD_NAMES
from kslottery_fast.rows import add_rows, get_output_rows, use_rows
from kslottery_fast.tickets import SelectedRows
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints, l2_select_checkpoints

MOVED = {"input": [3, 9], "output": [5, 9, 11]}


def moved(model: Any) -> Any:
    """The same model with other rows: some of its input embedding, some of its head."""
    model = copy.deepcopy(model)
    shifts = torch.tensor([3.0, 1.5, 0.6])[:, None]
    with torch.no_grad():
        model.get_input_embeddings().weight[MOVED["input"]] += 2
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            model.get_output_embeddings().weight[MOVED["output"]] += shifts
    return model


@pytest.fixture(scope="module")
def untied() -> tuple[Any, Any]:
    model = make("llama", tied=False)
    return model, moved(model)


@pytest.fixture(scope="module")
def tied() -> tuple[Any, Any]:
    model = make("llama", tied=True)
    return model, moved(model)


def by_scipy(before: torch.Tensor, after: torch.Tensor, alpha: float = 0.05) -> dict[int, float]:
    """The statistic of every row that scipy's test selects."""
    tests = [ks_2samp(x, y, method="exact") for x, y in zip(before.tolist(), after.tolist(), strict=True)]
    return {row: test.statistic for row, test in enumerate(tests) if test.pvalue < alpha}


@pytest.mark.parametrize("table", ["input", "output"])
def test_the_tickets_of_either_table_are_those_of_scipy(untied, table) -> None:
    before, after = untied
    weights = [getattr(model, f"get_{table}_embeddings")().weight.detach() for model in untied]
    expected = by_scipy(*weights)
    tickets = ks_select(before, after, table=table)
    assert dict(zip(tickets, tickets.statistic.tolist(), strict=True)) == pytest.approx(expected, abs=0)
    assert tickets.table == table
    assert tickets == ks_select(*weights, table=table)
    assert set(tickets) <= set(MOVED[table])
    assert len(tickets) >= 2


def test_a_head_alone_is_its_own_table(untied) -> None:
    heads = [model.get_output_embeddings() for model in untied]
    assert ks_select(*heads, table="output") == ks_select(*untied, table="output")
    with pytest.raises(TypeError, match=r"^emb_before is a Linear: .* table='output' compares output heads"):
        ks_select(*heads)


def test_the_head_of_a_tied_model_is_the_same_table_and_the_tickets_say_so(tied, untied) -> None:
    tickets, of_input = ks_select(*tied, table="output"), ks_select(*tied)
    assert (tickets.table, of_input.table) == ("shared", "input")
    assert list(tickets) == list(of_input)
    assert sorted(tickets) == MOVED["input"]
    assert "2 tickets of" in tickets.summary()
    assert "rows of the tied table" in tickets.summary()
    apart = copy.deepcopy(tied[1])
    apart.lm_head.weight = nn.Parameter(tied[0].lm_head.weight.detach().clone())  # then only one of the two is tied
    with pytest.warns(RuntimeWarning, match="no row"):
        assert ks_select(tied[0], apart, table="output").table == "output"
    offloaded = cpu_offload(copy.deepcopy(tied[1]), execution_device="cpu")
    assert ks_select(tied[0], offloaded, table="output") == tickets
    assert ks_select(untied[0], cpu_offload(copy.deepcopy(untied[1])), table="output") == ks_select(
        *untied, table="output"
    )


def test_rows_in_use_are_read_in_the_head_that_follows_them_and_in_no_other(tied) -> None:
    def with_rows(output: Any) -> Any:
        model = attach_rows(copy.deepcopy(tied[0]), [5, 7], output=output)
        with torch.no_grad():
            get_rows(model).rows[:] += 2
        return model

    following = with_rows("tied")
    tickets = ks_select(tied[0], following, table="output")
    assert (sorted(tickets), tickets.table) == ([5, 7], "shared")
    assert ks_select(tied[0], nn.Sequential(following), table="output") == tickets
    add_rows(following, "other", [8])
    use_rows(following, None)
    with pytest.warns(RuntimeWarning, match="no row"):
        assert ks_select(tied[0], following, table="output").table == "shared"
    with pytest.warns(RuntimeWarning, match="no row"):
        assert ks_select(tied[0], with_rows("frozen"), table="output").table == "output"


def test_what_has_no_head_says_so(untied) -> None:
    before, after = untied
    for value, name in ((after.model, "LlamaModel"), (nn.Embedding(4, 8), "Embedding")):
        with pytest.raises(InputError, match=rf"^emb_after, an? {name}, has no output head.*table='input'"):
            ks_select(before, value, table="output")
    small = nn.Linear(after.config.hidden_size, 7)
    with pytest.raises(
        InputError, match=r"was the vocabulary resized .*table='output', rows='shared'\) compares the 7 rows"
    ):
        ks_select(before, small, table="output")
    with pytest.raises(InputError, match=r"^table is 'head': expected"):
        ks_select(before, after, table="head")  # type: ignore[arg-type]


def test_a_file_keeps_the_table_and_one_of_the_input_is_as_it_was(untied, tmp_path) -> None:
    path = tmp_path / "tickets.json"
    for table, written in (("output", {"table": "output"}), ("input", {})):
        tickets = ks_select(*untied, table=table)
        tickets.save(path)
        assert Tickets.load(path) == tickets
        assert {key: value for key, value in json.loads(path.read_text()).items() if key == "table"} == written
    assert ks_select(*untied, table="output").to_pandas().attrs["table"] == "output"
    broken = ks_select(*untied, table="output").to_dict() | {"table": "head"}
    with pytest.raises(InputError, match=r"table is 'head': expected .*'shared'"):
        Tickets.from_dict(broken)


def test_sets_of_two_tables_share_tokens_but_no_evidence(untied) -> None:
    of_input, of_output = (ks_select(*untied, table=table) for table in ("input", "output"))
    assert list(of_input & of_output) == [9]
    assert (of_input & of_output).table == "input"
    assert (of_output - of_input).table == "output"
    with pytest.raises(InputError, match=r"other has table 'output', but these tickets have 'input'"):
        of_input | of_output
    assert of_input != ks_select(*(model.get_input_embeddings().weight for model in untied), table="output")
    assert "table='output'" in repr(of_output)
    assert "rows of the output head" in of_output.summary()
    assert "table" not in repr(of_input) + of_input.summary()


def test_tickets_of_the_head_are_not_taken_for_rows_of_the_input(untied, tied, tmp_path) -> None:
    tickets = ks_select(*untied, table="output")
    tickets.save(tmp_path / "tickets.json")
    model = copy.deepcopy(untied[0])
    for given in (tickets, tmp_path / "tickets.json"):
        with pytest.raises(InputError, match=r"^token_ids: these tickets are of the output head.*output_ids=tickets"):
            attach_rows(model, given)
        with pytest.raises(InputError, match=r"^token_ids: these tickets are of the output head"):
            transfer_rows(untied[1], model, given)
    assert torch.equal(model.lm_head.weight, untied[0].lm_head.weight)
    attach_rows(model, list(tickets))
    shared = ks_select(*tied, table="output")
    assert get_rows(attach_rows(copy.deepcopy(tied[0]), shared)).token_ids.tolist() == list(shared)


def saved(models: tuple[Any, Any], folder: Path, **options: Any) -> tuple[Path, Path]:
    for name, model in zip(("before", "after"), models, strict=True):
        model.save_pretrained(folder / name, **options)
    return folder / "before", folder / "after"


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_a_checkpoint_gives_the_tickets_of_its_model(untied, tmp_path, options) -> None:
    paths = saved(untied, tmp_path, **options)
    assert len(list(paths[1].glob("*.safetensors"))) > 1 or not options
    for table in ("input", "output"):
        assert ks_select_checkpoints(*paths, table=table) == ks_select(*untied, table=table)
    rows = l2_select_checkpoints(*paths, 2, table="output")
    assert (list(rows), rows.table) == ([5, 9], "output")
    assert "rows of the output head" in rows.summary()
    rows.save(tmp_path / "rows.json")
    assert SelectedRows.load(tmp_path / "rows.json").table == "output"
    with pytest.raises(InputError, match="these tickets are of the output head"):
        attach_rows(copy.deepcopy(untied[0]), tmp_path / "rows.json")


def other(kind: str) -> Any:
    """A tied model that is not among the tiny models of the rows."""
    import transformers as T

    torch.manual_seed(0)
    if kind == "bert":
        return T.BertForMaskedLM(
            T.BertConfig(
                vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
            )
        )
    sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 8, "pad_token_id": 0}
    return T.WhisperForConditionalGeneration(T.WhisperConfig(vocab_size=60, d_model=16, **sizes))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "m2m100", "bert", "whisper"])
def test_a_tied_checkpoint_stores_one_table_for_both(kind, tmp_path) -> None:
    models = (model := other(kind) if kind in ("bert", "whisper") else make(kind, tied=True)), moved(model)
    paths = saved(models, tmp_path)
    tickets = ks_select_checkpoints(*paths, table="output")
    assert (sorted(tickets), tickets.table) == (MOVED["input"], "shared")
    assert ks_select(*models, table="output") == tickets


@pytest.mark.parametrize("name", [f"model.{end}" for end in HEAD_NAMES] + ["output.weight"])
def test_auto_knows_the_names_of_heads(name, tmp_path) -> None:
    before = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[7] += 2
    inner = {"model.layers.0.output.weight": torch.zeros(20, 64), "embed_tokens.weight": torch.zeros(20, 64)}
    for path, table in (("a", before), ("b", after)):
        save_file({name: table, **inner}, tmp_path / f"{path}.safetensors")
    tickets = ks_select_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors", table="output")
    assert (list(tickets), tickets.table) == ([7], "output")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "no tensor has the name of an output head, and no config.json says whether the model is tied"),
        ({"tie_word_embeddings": False}, "config.json says that the model is not tied"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification has no output head"),
        ({"architectures": ["BertModel"]}, "BertModel has no output head"),
        ({"architectures": 5, "vocab_size": True}, None),
        ({"architectures": ["GPT2LMHeadModel"], "vocab_size": 21}, "config.json has vocab_size 21"),
        ({"architectures": ["GPT2LMHeadModel"], "vocab_size": 20}, None),
        ({"text_config": {"tie_word_embeddings": True}}, None),
    ],
)
def test_a_checkpoint_without_a_head_is_tied_or_refused(config, reason, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"wte.weight": torch.full((20, 64), float(name == "b"))}, tmp_path / name / "model.safetensors")
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    if reason is None:
        assert ks_select_checkpoints(tmp_path / "a", tmp_path / "b", table="output").table == "shared"
        return
    with pytest.raises(InputError, match=reason):
        ks_select_checkpoints(tmp_path / "a", tmp_path / "b", table="output")
    named = ks_select_checkpoints(tmp_path / "a", tmp_path / "b", table="output", tensor="wte.weight")
    assert (len(named), named.table) == (20, "output")


def test_a_scan_marks_both_tables_and_compares_one_alone(untied, tied, tmp_path) -> None:
    paths = saved(untied, tmp_path / "untied")
    scan = scan_checkpoints(*paths)
    marked = {shift.kind: shift.mark for shift in scan.tensors if shift.mark}
    assert marked == {"embed_tokens": "*", "lm_head": "+"}
    assert {"*: the input embedding", "+: the output head"} <= set(scan.legend())
    for table, kind in (("input", "embed_tokens"), ("output", "lm_head")):
        alone = scan_checkpoints(*paths, table=table)
        assert alone.tensors == [shift for shift in scan.tensors if shift.kind == kind]
        assert not any("not compared" in line for line in alone.legend())
    one = scan_checkpoints(*saved(tied, tmp_path / "tied"), table="output")
    assert [(shift.kind, shift.mark, shift.changed_rows) for shift in one.tensors] == [("embed_tokens", "*+", 2)]
    assert "*+: the input embedding and the output head, tied" in one.legend()
    with pytest.raises(InputError, match=r"tensor lm_head\.weight is not in the other checkpoint"):
        scan_checkpoints(paths[0], tmp_path / "tied" / "after", table="output")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{}, {"correction": "bonferroni"}, {"correction": "bh"}, {"top_k": 2}], ids=str)
def test_rows_of_the_head_are_tested_where_they_are_attached(tied, options) -> None:
    model = make("phi" if not tied else "llama", tied=tied)
    weight = model.get_output_embeddings().weight.detach().clone()
    attach_rows(model, [3, 4], output="own", output_ids=[50, 7, 5])
    head = get_output_rows(model)
    with torch.no_grad():
        head.rows[:2] += torch.tensor([3.0, 0.9])[:, None]
    tuned = weight.clone()
    tuned[[50, 7]] = head.rows[:2].detach()
    expected = ks_select(weight, tuned, table="output", **options)
    assert expected == ks_select_rows(model, table="output", **options)
    assert expected == ks_select(weight, model, table="output", **options)
    assert 1 <= len(expected) <= 2
    with pytest.warns(RuntimeWarning, match="no row"):
        assert len(ks_select_rows(model)) == 0
    merged = merge_rows(model)
    assert ks_select(weight, merged, table="output", **options) == expected


def test_rows_of_the_input_that_the_head_follows_are_its_rows(tied) -> None:
    model = attach_rows(copy.deepcopy(tied[0]), [5, 7], output="tied")
    with torch.no_grad():
        get_rows(model).rows[:] += 2
    tickets = ks_select_rows(model, table="output")
    assert (sorted(tickets), tickets.table) == ([5, 7], "shared")
    frozen = attach_rows(copy.deepcopy(tied[0]), [5, 7], output="frozen")
    with pytest.raises(InputError, match=r"the output head has no rows of its own.*output='own'"):
        ks_select_rows(frozen, table="output")
    with pytest.raises(InputError, match=r"^table is 'head': expected"):
        ks_select_rows(model, table="head")  # type: ignore[arg-type]


def test_tickets_of_the_head_say_which_of_its_rows_train(untied) -> None:
    tickets = ks_select(*untied, table="output")
    model = attach_rows(copy.deepcopy(untied[0]), ks_select(*untied), output="own", output_ids=tickets)
    assert get_output_rows(model).token_ids.tolist() == list(tickets)
    table = untied[0].get_output_embeddings().weight.detach().clone()
    transfer_rows(untied[1].get_output_embeddings().weight.detach(), table, tickets)
    assert ks_select(untied[0], table, table="output") == tickets
