"""One estimate of the time that is left, from a clock that the test sets."""

import io
import re

import pytest
from rich.console import Console

from kslottery_fast.lab.experiment.console import Effort, Forecast, RunConsole


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def efforts(*kinds):
    return [Effort(kind) for kind in kinds]


def steps(forecast, clock, seconds, total, count, first=1):
    """Do some steps of the job at hand and return what was last said of it."""
    found = None
    for step in range(first, first + count):
        clock.now += seconds
        found = forecast.seconds_left(step, total)
    return found


def test_nothing_is_said_while_nothing_is_known(clock):
    forecast = Forecast(efforts("scoring", "training", "scoring"), clock)
    assert steps(forecast, clock, 1.0, 100, 50) is None  # what a training takes cannot be told
    forecast.finish(100.0)
    assert forecast.text(1, 10) == ""
    assert steps(forecast, clock, 2.0, 10, 2, first=2) is None  # two steps are no pace
    assert steps(forecast, clock, 2.0, 10, 1, first=4) == pytest.approx(6 * 2 + 100)


def test_work_of_the_same_kind_counts_then_work_of_the_same_family(clock):
    kinds = ["training", "none", "training.lora", "scoring", "scoring.certificate", "training"]
    forecast = Forecast(efforts(*kinds), clock)
    forecast.learn(Effort("scoring"), 30.0)
    assert steps(forecast, clock, 1.0, 100, 10) == pytest.approx(90 + 0 + 100 + 30 + 30 + 100)
    forecast.learn(Effort("training.lora"), 500.0)
    forecast.learn(Effort("scoring.certificate"), 7.0)
    assert steps(forecast, clock, 1.0, 100, 1, first=11) == pytest.approx(89 + 0 + 500 + 30 + 7 + 100)


def test_a_job_of_twice_the_size_takes_twice_the_time(clock):
    forecast = Forecast([Effort("training"), Effort("training", 2.0), Effort("training.lora", 0.5)], clock)
    assert steps(forecast, clock, 1.0, 100, 10) == pytest.approx(90 + 200 + 50)
    forecast.finish(100.0)
    assert forecast.seconds_left(0, 200) == pytest.approx(200 + 50)  # before it has a pace of its own
    assert steps(forecast, clock, 3.0, 200, 10) == pytest.approx(190 * 3 + 150)  # all trainings are slower now
    forecast.finish(600.0)
    assert forecast.whole(Effort("training", 4.0)) == pytest.approx(1200)  # the larger job counts more


def test_short_jobs_say_little_about_long_ones(clock):
    forecast = Forecast([], clock)
    for _ in range(3):
        forecast.learn(Effort("training", 1 / 30), 15.0)  # most of which is not training
    forecast.learn(Effort("training"), 100.0)
    assert forecast.whole(Effort("training")) == pytest.approx(100)


def test_the_pace_of_a_training_is_the_median_of_its_last_steps(clock):
    forecast = Forecast(efforts("training", "training"), clock)
    steps(forecast, clock, 50.0, 100, 1)  # the first step warms up
    assert steps(forecast, clock, 1.0, 100, 9, first=2) == pytest.approx(90 + 100)
    steps(forecast, clock, 60.0, 100, 1, first=11)  # a laptop that slept
    assert steps(forecast, clock, 1.0, 100, 1, first=12) == pytest.approx(88 + 100)
    assert steps(forecast, clock, 3.0, 100, 38, first=13) == pytest.approx(50 * 3 + 300)  # something else works too


def test_a_training_that_goes_on_from_a_checkpoint_is_not_taken_for_a_fast_one(clock):
    assert steps(Forecast(efforts("training"), clock), clock, 2.0, 150, 10, first=101) == pytest.approx(40 * 2)


def test_what_has_been_scored_before_says_more_than_the_first_half_of_a_scoring(clock):
    forecast = Forecast(efforts("scoring"), clock)
    forecast.learn(Effort("scoring"), 100.0)  # quick likelihoods, then slow translations
    assert steps(forecast, clock, 0.1, 20, 10) == pytest.approx(50)


def test_zero_seconds_are_never_left(clock):
    forecast = Forecast(efforts("training"), clock)
    said = [forecast.text(step, 5) for step in range(1, 6) if not setattr(clock, "now", step * 0.001)]
    assert said == ["", "", "", "less than a minute left", ""]


def test_work_without_parts_is_none(clock):
    forecast = Forecast(efforts("scoring", "scoring"), clock)
    forecast.learn(Effort("scoring"), 100.0)
    assert forecast.seconds_left(0, 0) == 100


def test_lines_without_a_terminal_show_loss_and_time_left_in_all(clock):
    file = io.StringIO()
    console = RunConsole(Console(file=file, width=200), heartbeat=0.0)
    with console.task("Embed Tuning", Forecast(efforts("training", "training"), clock)) as progress:
        for step in range(1, 7):
            clock.now += 10
            progress(step, 60, f"loss {3 - step / 10:.3f}")
    lines = file.getvalue().splitlines()
    assert lines[1] == "Embed Tuning: 1 of 60, loss 2.900"
    assert lines[6] == "Embed Tuning: 6 of 60, loss 2.400, about 19 min left in all"
    assert lines[7].startswith("Embed Tuning: done in ")


def test_quiet_leaves_out_progress_and_shows_notes():
    for terminal in (False, True):
        file = io.StringIO()
        console = RunConsole(Console(file=file, width=80, force_terminal=terminal), heartbeat=0.0, quiet=True)
        console.say("3 of 4 stages are finished")
        with console.task("Embed Tuning") as progress:
            progress(1, 2, "loss 2.4")
        console.note("no row is significant")
        assert file.getvalue() == "note: no row is significant\n"


def test_a_bar_has_them_beside_it_within_80_columns(clock):
    file = io.StringIO()
    console = RunConsole(Console(file=file, width=80, force_terminal=True))
    title = "[112/140] es, seed 0: evaluating Rows by gradient @0.05, paraphrased"
    with console.task(title, Forecast(efforts("training", "training"), clock)) as progress:
        for step in range(1, 7):
            clock.now += 100
            progress(step, 60, "loss 2.400")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert re.search(r"━ +6/60 0:00:0\d loss 2\.400, about 3 h 10 min left in all", text)
    assert title in text
