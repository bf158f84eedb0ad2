"""What a report says about learning rates that were searched."""

from kslottery_fast.lab.report.rates import sentences

ARM = {"label": "Partial Tuning (KS)"}


def seed(kept, *tried):
    return {"kept": kept, "tried": [{"rate": rate, "validation_nll": nll} for rate, nll in tried]}


def test_a_best_rate_at_an_end_of_the_list_is_named_and_one_inside_is_not():
    inside = seed(0.03, (0.01, 2.0), (0.03, 1.0), (0.1, 2.0))
    highest = seed(0.1, (0.01, 2.0), (0.03, 1.0), (0.1, 0.5))
    lowest = seed(0.01, (0.01, 0.5), (0.03, 1.0), (0.1, 0.6))
    arms = {
        "untuned": {"label": "Untuned"},
        "partial@18:lr=0.01_0.03_0.1": {**ARM, "learning_rates": [highest, inside]},
        "partial@64:lr=0.01_0.03_0.1": {**ARM, "learning_rates": [highest, lowest]},
        "partial@200:lr=0.01_0.03_0.1": {**ARM, "learning_rates": [inside, inside]},
    }
    small, large = "Partial Tuning (KS) @18:lr=0.01/0.03/0.1", "Partial Tuning (KS) @64:lr=0.01/0.03/0.1"
    half = "(with 1 of 2 training seeds)"
    assert sentences(arms) == [
        f"The highest learning rate that was tried had the lowest validation NLL for {small} {half} and {large} {half}."
        " A higher one may do better still.",
        f"The lowest learning rate that was tried had the lowest validation NLL for {large} {half}. A lower one may do "
        "better still.",
    ]
    assert sentences({"partial@18:lr=0.01_0.03_0.1": {**ARM, "learning_rates": [inside]}}) == []


def test_a_rate_below_one_that_diverged_is_no_end():
    seeds = [seed(0.1, (0.01, 3), (0.1, 2), (1, None))]
    assert sentences({"full:lr=0.01_0.1_1": {"label": "Full Tuning", "learning_rates": seeds}}) == []
