"""The parts of benchmarks/ that a number in a document depends on."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    drift_columns,
    history,
    ks_workloads,
    memory,
    peers,
    row_workloads,
    step_savings,
    table,
    targets,
    teach_words,
    threads,
    training_checks,
    training_workloads,
    two_builds,
    two_sample_workloads,
)
from benchmarks.experiment_step import step
from benchmarks.measure import Contender, Timing, take_turns
from benchmarks.paired import Ratio, paired_ratios
from benchmarks.records import verdict
from benchmarks.workloads import Spec, Workload
from kslottery_fast import ks_2samp, ks_statistics
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.ops import native

SELECT = Spec("ks_select", (32_000, 4_096), torch.float32, "every row shifted")


@pytest.mark.parametrize("pattern", memory.PATTERNS)
@pytest.mark.parametrize("values", [16, 1 << 18, (1 << 20) + 48])
def test_the_memory_floor_reads_every_word_of_both_tables_once(pattern, values):
    x, y = torch.randint(-(1 << 62), 1 << 62, (2, values), generator=torch.Generator().manual_seed(0))
    both = np.concatenate([x.numpy(), y.numpy()]).view(np.uint64)
    assert memory.read(x, y, pattern) == np.bitwise_xor.reduce(both)


@pytest.mark.parametrize("y", [torch.zeros(17), torch.zeros(32)[::2], torch.zeros(32)])
def test_the_memory_floor_refuses_what_it_would_not_read_in_full(y):
    with pytest.raises(ValueError, match="expected two contiguous tensors of one size"):
        memory.read(torch.zeros(16), y, "long runs")


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls = []
    contenders = {name: Contender(lambda turn, name=name: calls.append((name, turn))) for name in "ab"}
    timings = take_turns(contenders, turns=2, calls=2)
    assert calls == [(name, 2 * turn + call) for turn in range(3) for name in "ab" for call in range(2)]
    assert [timing.turns for timing in timings.values()] == [2, 2]


def test_seconds_are_scaled_to_the_whole_work(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    timings = take_turns({"sample": Contender(lambda turn: None, scale=640.0)}, turns=3)
    assert timings["sample"] == Timing(640.0, 640.0, 640.0, (640.0, 640.0, 640.0))


def test_a_peer_on_a_sample_is_scaled_by_the_rows_it_left_out():
    x, y, scale = peers.sample(torch.arange(600.0)[:, None], torch.zeros(600, 1), 50)
    assert (len(x), len(y), scale) == (50, 50, 12.0)
    assert (x[0].item(), x[-1].item()) == (0.0, 599.0)
    assert peers.sample(torch.zeros(7, 1), torch.zeros(7, 1), 50)[2] == 1.0


def test_the_torch_peer_computes_what_we_compute():
    before, after = ks_workloads.float32_tables((50, 64), "every row shifted")
    assert torch.equal(peers.batched_statistics(before, after), ks_statistics(before, after))


@pytest.mark.parametrize(("case", "changed"), [("every row shifted", 40), ("5% of rows changed", 2), ("identical", 0)])
def test_tables_are_reproducible_and_change_as_many_rows_as_their_case_says(case, changed):
    first = [table.clone() for table in ks_workloads.float32_tables((40, 64), case)]
    ks_workloads.forget_tables()
    assert all(map(torch.equal, first, ks_workloads.float32_tables((40, 64), case)))
    assert int((first[0] != first[1]).any(dim=1).sum()) == changed
    assert first[0].data_ptr() != first[1].data_ptr()


def test_the_presorted_peer_computes_what_we_compute():
    rng = np.random.default_rng(0)
    sample, reference = rng.normal(size=20), rng.normal(size=300)
    got = two_sample_workloads.presorted_statistic(sample, np.sort(reference))
    assert got == pytest.approx(ks_2samp(sample, reference).statistic, abs=1e-15)


@pytest.mark.parametrize("op", [two_sample_workloads.COLUMNS, two_sample_workloads.COLUMNS_KERNEL])
def test_the_workloads_of_columns_have_the_peers_of_their_targets(op, monkeypatch):
    monkeypatch.setattr(two_sample_workloads, "SHAPES", {(3, 40, 30): 1})
    workload = two_sample_workloads.prepare(two_sample_workloads.column_spec(op, 3, 40, 30))
    assert all(contender.run(0) is not None for contender in workload.contenders.values())
    assert "x scipy" in paired_ratios(dict.fromkeys(workload.contenders, Timing.of([1.0])), targets.PEERS)


def test_calls_in_a_row_and_loops_over_scipy_take_turns_and_have_the_same_statistic(monkeypatch, capsys):
    monkeypatch.setattr(two_sample_workloads, "SHAPES", {(3, 40, 30): 1})
    monkeypatch.setattr(sys, "argv", ["two_sample_workloads", "--turns", "3"])
    ticks = {"clock": 0.0}

    def tick() -> float:
        ticks["clock"] += 1.0
        return ticks["clock"]

    monkeypatch.setattr("time.perf_counter", tick)
    monkeypatch.setattr("time.thread_time", tick)
    threads_before = torch.get_num_threads()
    try:
        assert two_sample_workloads.main() == 0
    finally:
        torch.set_num_threads(threads_before)
    heading, shape, *lines = capsys.readouterr().out.splitlines()
    assert heading.startswith("medians of 3 turns")
    assert shape == "3 x 40, 30 (to reach: 1)"
    # One tick for a loop of scipy, and one for 60 of our calls.
    assert [line.split(";")[0] for line in lines] == ["  threads: 2", "  threads: 1"]
    assert all("scipy 1,000 ms; ks_2samp 16.7 ms, x 60 (60 to 60); with all" in line for line in lines)


@pytest.mark.parametrize(("missing", "policy"), [(0.0, "propagate"), (0.1, "omit")])
def test_only_samples_with_missing_values_are_searched_for_them(missing, policy, monkeypatch):
    policies, searched = [], []
    monkeypatch.setattr(two_sample_workloads, "REFERENCE", (4, 20, 300))
    monkeypatch.setattr(two_sample_workloads, "ks_2samp", lambda *_, **options: policies.append(options["nan_policy"]))
    workload = two_sample_workloads._one_reference(4, 20, 300, missing)
    monkeypatch.setattr(two_sample_workloads.np, "isnan", lambda row: searched.append(row) or np.not_equal(row, row))
    for contender in workload.contenders.values():
        contender.run(0)
    assert policies == [policy]
    assert bool(searched) == (missing > 0)


def test_every_target_belongs_to_a_row_of_the_full_table():
    modules = ks_workloads, two_sample_workloads, row_workloads, training_workloads
    assert set(targets.TARGETS) <= {spec for module in modules for spec in module.suite().specs}


def judged(spec, **medians):
    """The verdict over a row with these medians, whose turns were all alike. "_" stands for a space."""
    ratios = {name.replace("_", " "): Ratio(median, median, median) for name, median in medians.items()}
    return verdict(targets.targets_of(spec), ratios)


def test_a_row_that_misses_one_of_its_targets_falls_short_and_says_which():
    assert judged(SELECT, x_scipy=350.0, **{"/ floor": 7.0}) == "met: x scipy >= 350, / floor <= 7"
    assert judged(SELECT, x_scipy=350.0, **{"/ floor": 7.01}) == "FALLS SHORT: / floor <= 7"
    assert judged(SELECT, x_scipy=349.9, **{"/ floor": 7.0}) == "FALLS SHORT: x scipy >= 350"
    assert judged(Spec("ks_2samp", (1, 2), torch.float32, "a small batch")) == ""


def timings(**seconds):
    return {name.replace("_", " "): Timing.of(each) for name, each in seconds.items()}


def test_adversarial_rows_are_judged_against_the_faster_of_the_two_sorts():
    spec = Spec("ks_statistics", (8, 64), torch.float32, ks_workloads.PREFIX + "clusters")
    for ours, numpy_sort, torch_sort, expected in ((2.51, 1.0, 3.0, "FALLS SHORT"), (2.5, 3.0, 1.0, "met")):
        measured = timings(ours=[ours], numpy_sort=[numpy_sort], torch_sort=[torch_sort])
        ratios = paired_ratios(measured, targets.PEERS)
        assert verdict(targets.targets_of(spec), ratios) == f"{expected}: x sort >= 0.4"


def test_a_machine_that_slows_down_for_a_turn_does_not_change_ratios():
    steady = timings(ours=[1.0, 1.0, 1.0], scipy=[50.0, 52.0, 51.0], floor=[0.5, 0.5, 0.5])
    drifting = timings(ours=[1.0, 3.0, 9.0], scipy=[50.0, 156.0, 459.0], floor=[0.5, 1.5, 4.5])
    for measured in (steady, drifting):
        ratios = paired_ratios(measured, targets.PEERS)
        assert ratios == {"/ floor": Ratio(2.0, 2.0, 2.0), "x scipy": Ratio(51.0, 50.5, 51.5)}


def test_only_contenders_that_took_turns_have_a_ratio():
    with pytest.raises(ValueError, match="2 and 1 turns"):
        paired_ratios(timings(ours=[1.0], scipy=[1.0, 2.0]), targets.PEERS)


def results_of(utc, median=2.0, **about):
    """What `--output` writes, of one row with one target."""
    ratios = {"/ floor": {"median": median, "low": median - 0.25, "high": median + 0.5}}
    row = {"op": "ks_select", "shape": [32_000, 4_096], "dtype": "float32", "case": "every row shifted"}
    machine = {"utc": utc, "commit": "abc", "cpu": "A CPU", "threads": 2, "isa": "avx512", "torch": "2", "load": 0.1}
    return {"machine": machine | about, "rows": [{**row, "ratios": ratios, "targets": ["/ floor <= 7"]}]}


def test_the_history_has_a_line_for_each_run_in_the_order_of_time(tmp_path):
    path = tmp_path / "history.jsonl"
    for utc, median in (("2026-11-02", 3.0), ("2026-11-01", 2.0), ("2026-11-02", 3.0), ("2026-11-03", 4.0)):
        history.add(results_of(utc, median), path)
    history.add(results_of("2026-11-02", 5.0, gpu="A GPU"), path)
    history.add(results_of("2026-11-04") | {"quick": True}, path)
    lines = history.read(path)
    assert [line["utc"][-1] for line in lines] == ["1", "2", "2", "3", "4"]
    shown = {("ks_select, 32,000 x 4,096 float32, every row shifted", "/ floor")}
    panels = history.panels(lines)
    assert set(panels) == shown
    (series,) = panels.values()
    assert series["A CPU, 2 threads"] == [(f"2026-11-0{n}", [n + 1.0, n + 0.75, n + 1.5]) for n in (1, 2, 3)]
    assert series["A GPU, 2 threads"] == [("2026-11-02", [5.0, 4.75, 5.5])]
    assert history.bound_of(lines, *next(iter(shown))) == 7.0


def test_the_history_is_drawn_and_takes_results_of_the_first_format(tmp_path, monkeypatch, capsys):
    first = results_of("2026-11-01")
    first["rows"][0]["ratios"] = {"/ floor": 2.83274}
    (tmp_path / "first.json").write_text(json.dumps(first))
    path, picture = tmp_path / "history.jsonl", tmp_path / "made" / "history.svg"
    command = ["history", "--history", str(path), "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    assert history.main() == 2
    assert "has no runs" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--add", str(tmp_path / "first.json")])
    assert history.main() == 0
    assert "<svg" in picture.read_text()
    assert list(history.read(path)[0]["rows"].values()) == [{"/ floor": [2.833, 2.833, 2.833]}]
    for wrong in ("{}", "no JSON", "[]"):
        (tmp_path / "first.json").write_text(wrong)
        assert history.main() == 2
        assert "error: these are no results of a benchmark" in capsys.readouterr().err
    assert len(history.read(path)) == 1


def test_runs_that_were_kept_can_be_read_and_drawn():
    lines = history.read()
    assert lines, "benchmarks/history.jsonl is empty"
    assert len({(line["utc"], line["machine"]) for line in lines}) == len(lines)
    assert history.panels(lines)


def small(monkeypatch):
    """A suite of one small row of each kind."""
    tables = [Spec("ks_select", (40, 64), dtype, "5% of rows changed") for dtype in ks_workloads.DTYPES]
    cases = ["clusters", "constant", "one bucket"]
    adversarial = [Spec("ks_statistics", (8, 64), torch.float32, ks_workloads.PREFIX + case) for case in cases]
    batch = Spec("ks_2samp", (3, 64), torch.float32, "a small batch")
    monkeypatch.setattr(memory, "last_level_cache", lambda: 1 << 12)
    suite = ks_workloads.Suite([*tables, *adversarial, batch], ks_workloads.prepare)
    monkeypatch.setattr(ks_workloads, "suite", lambda quick: suite)
    for module in (row_workloads, training_workloads, two_sample_workloads):
        monkeypatch.setattr(module, "suite", lambda quick, module=module: ks_workloads.Suite([], module.prepare))


def test_the_table_has_every_row_and_of_adversarial_ones_the_worst(monkeypatch, capsys):
    small(monkeypatch)
    records = table.run(turns=1, quick=True, only="")
    lines = capsys.readouterr().out.splitlines()
    assert len(records) == 6
    shown = [text for text in lines[1:] if "FALLS SHORT" not in text or "worst of 3" in text]
    assert [text.split()[0] for text in shown] == ["ks_select", "ks_select", "ks_statistics", "ks_2samp"]
    assert "worst of 3" in shown[2]
    assert all(set(record["ratios"]) >= {"/ floor", "x sort"} for record in records[:5])
    assert "x float32" in records[1]["ratios"]
    assert "5% tickets" in lines[1]


@pytest.mark.parametrize("spec", row_workloads.suite().specs, ids=str)
def test_row_workloads_run(monkeypatch, spec):
    monkeypatch.setattr(row_workloads, "SHAPES", {(3, 8): 40})
    monkeypatch.setattr(memory, "last_level_cache", lambda: 1 << 12)
    workload = row_workloads.prepare(Spec(spec.op, (3, 8), spec.dtype, spec.case))
    assert isinstance(workload, Workload)
    assert set(take_turns(workload.contenders, turns=1, calls=3)) == {"ours", "torch"}


def test_a_dense_table_is_timed_in_part_and_scaled(monkeypatch):
    monkeypatch.setattr(row_workloads, "DENSE", {(3, 8): 400})
    monkeypatch.setattr(row_workloads, "DENSE_PART", 20)
    monkeypatch.setattr(row_workloads, "SHAPES", {(3, 8): 40})
    monkeypatch.setattr(memory, "last_level_cache", lambda: 1 << 12)
    dense = row_workloads.prepare(Spec("RowAdamW", (3, 8), torch.float32, "compact parameter")).contenders["dense"]
    assert dense.scale == 20.0
    dense.run(0)


@pytest.fixture
def one_thread():
    """Small operations wait for each other's threads far longer than they take, when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("spec", training_workloads.suite(quick=True).specs, ids=str)
def test_training_workloads_run_against_the_peers_of_their_targets(monkeypatch, spec):
    monkeypatch.setattr(training_workloads, "LAYERS", 1)
    monkeypatch.setattr(training_workloads, "BATCH", (2, 8))
    small = Spec(spec.op, (300 if spec.op != training_workloads.MONITOR else 50, 576), spec.dtype, spec.case)
    monkeypatch.setattr(training_workloads, "TABLES", (300,))
    measured = take_turns(training_workloads.prepare(small).contenders, turns=1)
    assert {target.ratio for target in targets.targets_of(spec)} <= set(paired_ratios(measured, targets.PEERS))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", ["tied, head follows", "untied", training_workloads.BOTH])
def test_fifty_losses_are_those_of_peft(monkeypatch, case):
    for name, value in {"LAYERS": 1, "WIDTH": 72, "BATCH": (2, 8), "LR": 1e-2}.items():
        monkeypatch.setattr(training_workloads, name, value)
    record = training_checks.losses(300, case)
    assert record["verdict"] == "met", record
    assert record["fell"] > 0.1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("output", ["auto", "own"])
def test_a_gradient_mask_trains_what_attached_rows_train(monkeypatch, output):
    for name, value in {"LAYERS": 1, "WIDTH": 72, "BATCH": (2, 8), "LR": 1e-2}.items():
        monkeypatch.setattr(training_workloads, name, value)
    ids = training_workloads.tokens(300)
    batches = [training_workloads.batch(300, ids, seed) for seed in range(2)]
    losses = []
    for name in ("ours", "mask"):
        trained = training_workloads.MAKE[name](training_workloads.llama(300, tied=False), ids, output)
        run = training_workloads.step(*trained, batches)
        losses.append([run(turn) for turn in range(8)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][-2] < losses[0][0] - 0.05


@pytest.mark.usefixtures("one_thread")
def test_a_peak_of_memory_counts_what_a_step_allocates(monkeypatch):
    monkeypatch.setattr(training_workloads, "LAYERS", 1)
    monkeypatch.setattr(training_workloads, "BATCH", (2, 8))
    floor, dense = (training_checks.peak(name, 20_000, "untied") for name in ("floor", "dense"))
    assert dense - floor > 2 * 20_000 * 576 * 4  # a gradient and two moments, of which some memory was free before


@pytest.mark.parametrize(
    ("case", "bound", "verdict"),
    [("untied", 9_234_432, "FALLS SHORT"), (training_workloads.BOTH, 10_080_256, "met")],
)
def test_rows_of_both_tables_may_take_their_share_of_memory_twice(monkeypatch, case, bound, verdict):
    monkeypatch.setattr(training_checks, "in_a_process", lambda name, V, case: 0 if name == "floor" else 10_000_000)
    record = training_checks.memory(32_000, case)
    assert (record["bound"], record["extra"], record["verdict"]) == (bound, 10_000_000, verdict)


def test_one_process_that_takes_more_memory_decides_nothing(monkeypatch):
    peaks = {
        "ours": iter([14 << 20, 1 << 20, 2 << 20, 0, -(3 << 20)]),
        "floor": iter([-(9 << 20), 0, 0, 1 << 20, 0]),
    }
    monkeypatch.setattr(training_checks, "in_a_process", lambda name, V, case: next(peaks[name]))
    monkeypatch.setattr(training_checks, "peers_of", lambda case: ())
    record = training_checks.memory(49_152, "untied")
    assert (record["extra"], record["verdict"]) == (1 << 20, "met")


def test_small_calls_between_operators_of_torch_end_no_thread():
    before = torch.get_num_threads()
    try:
        row = dict(zip([heading for heading, _ in threads.COLUMNS], threads.measure(4, turns=1, calls=2), strict=True))
    finally:
        torch.set_num_threads(before)
    assert (row["threads"], row["threads ended"]) == ("4", "0")


def test_a_smaller_team_ends_the_threads_above_it():
    """What the runtime does if the number of threads varies, which is why the native core always asks for the same."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        torch.ones(4 << 16).add_(1.0)
        threads.regions(4)(0)
        team = threads.task_ids()
        threads.regions(4, 4)(0)
        assert not team - threads.task_ids()
        threads.regions(2)(0)
        until = time.monotonic() + 30  # a thread takes a while to end where others want its core
        while len(team - threads.task_ids()) != 2:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        torch.set_num_threads(before)


def test_a_beginning_that_examples_share_gives_the_same_loss_and_gradients_when_it_is_computed_once(
    tiny_llama, tiny_tokenizer
):
    texts = ["Save", "Save the file", "The house is big"]
    features = [encode(tiny_tokenizer, Example(f"English: {text}\nSpanish:", f" {text[::-1]}")) for text in texts]
    beginning, model = step_savings.common_beginning(features), tiny_llama()
    assert len({tuple(feature["input_ids"][:beginning]) for feature in features}) == 1
    assert len({feature["input_ids"][beginning] for feature in features}) > 1
    batch, ids = collate(features, 2), torch.tensor(features[1]["input_ids"]).unique()
    once = step_savings.trained_on(model, ids, lambda: step_savings.shared_step(model, batch, beginning))[1]
    each = step_savings.trained_on(model, ids, lambda: step(model, batch))[1]
    assert each.norm() > 0
    assert (once - each).norm() < 1e-5 * each.norm()


def test_words_are_taught_by_their_rows_alone_and_the_control_swaps_whole_sentences(tiny_llama, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    model = tiny_llama(tied=True, initializer_range=0.1)
    scores = teach_words.study(model, tokenizer, steps=5, lr=1e-2)
    assert list(scores) == ["untrained", "swapped", "trained"]
    assert scores["untrained"].choice == 0.2  # equal rows give equal losses, and the first word is taken
    assert scores["trained"].nll_of_word < scores["untrained"].nll_of_word
    assert all(text.startswith("A") and " is a kind of" in text for text in scores["trained"].completions)
    assert teach_words.swapped(teach_words.TRAINING)[" velmar"][0].startswith("A velmar is a brass instrument")
    for word, sentences in [*teach_words.TRAINING.items(), *teach_words.HELD_OUT.items()]:
        assert all(sentence.count(word) == 1 for sentence in sentences)


def test_a_drift_job_gives_the_same_in_a_loop_over_scipy_and_by_ks_frames():
    assert list(drift_columns.measure(3, 40, 30, turns=1)) == ["loop over scipy", "ks_frames", "ks_frames, parquet"]


def test_two_builds_take_turns_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    old = Path(native.module().__file__)
    new = tmp_path / old.name
    shutil.copy2(old, new)
    small = ["--pairs", "1", "--turns", "2", "--scale", "1000"]
    monkeypatch.setattr(sys, "argv", ["two_builds", str(old), str(new), *small])
    assert two_builds.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(case) for case in two_builds.cases(1000)]
    assert all(" µs a row, old / new " in line for line in lines)


def test_two_builds_need_two_files_and_a_process_has_one_of_them(monkeypatch, capsys):
    build = Path(native.module().__file__)
    monkeypatch.setattr(sys, "argv", ["two_builds", str(build)])
    with pytest.raises(SystemExit):
        two_builds.main()
    assert "1 builds were given; expected two, the old one and the new one" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="was to be used, but this process has imported kslottery_fast already"):
        two_builds.use(build)
