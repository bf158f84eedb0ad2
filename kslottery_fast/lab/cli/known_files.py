"""The files and folders that the commands write, by name, with what each is. :mod:`.explain` adds what is in it."""

from fnmatch import fnmatch
from pathlib import Path

RUN = "run.json"
STAGE = "stage.json"
ADAPTER = "adapter_config.json"
SCAN = "scan.json"
MODEL = "config.json"

FILES: dict[str, dict[str, str]] = {
    RUN: {
        "run.json": "the settings of an experiment; a later call there needs the same `settings`, may change `grid`, "
        "and finds relative paths in `directory`, if there is one",
        "summary.json": "the results of an experiment: scores of every arm and language, tickets, certificate, advice",
        "environment.json": "the environment of an experiment: versions, system, commands, licences, seconds by stage",
        "report.html": "the report of an experiment; open it in a browser",
        "scores.csv": "the scores of every arm and their differences, with intervals, as a table in CSV",
        "scores.tex": "the scores of every arm as a LaTeX table, which needs the package booktabs",
        "rows-*.csv": "D, L2 shift, gradient, count and (if measured) contribution of every active row, first seed",
        "scores-*.png": "a figure of the report: the scores of every arm with intervals",
        "sizes-*.png": "a figure of the report: scores by number of rows",
        "losses-*.png": "a figure of the report: the training loss of every arm, first training seed",
        "costs-*.png": "a figure of the report: coverage and wall time of every arm",
        "tickets-*.png": "a figure of the report: how many tickets each alpha selects",
        "histogram-*.png": "a figure of the report: the histogram of D over the rows",
        "frequency-*.png": "a figure of the report: D of each row by how often its token occurs",
        "ecdf-*.png": "a figure of the report: distributions of single rows before and after Embed Tuning",
        "contributions-*.png": "a figure of the report: what the first rows of each way to choose rows account for",
        "selectors-*.png": "a figure of the report: how far the ways to choose rows agree",
        "certificate-*.png": "a figure of the report: certified positions by alpha",
        "languages.png": "a figure of the report: how far the tickets of the languages agree",
        "*.png": "a figure of the report",
        "*.csv": "a table of the report in CSV",
        "*.tex": "a table of the report in LaTeX",
        "tickets.json": "the tickets of an experiment",
        "tickets.safetensors": "the rows of the tickets (`token_ids`) after Embed Tuning and after Partial Tuning",
        ".lock": "the lock of an experiment, which keeps a second command out of its folder",
    },
    STAGE: {
        "stage.json": "the record of a finished stage: seconds, command, versions, system and peak memory",
        "arm.json": "what an arm trained: rows and trained parameters",
        "losses.json": "the loss of every training step, in nats per target token",
        "corpus.json": "the pairs of an experiment by split, the licences, and which model it uses",
        "rows.safetensors": "trained rows: `token_ids` and the values of their rows",
        "evidence.json": "the steps and settings of the evidence in evidence.safetensors",
        "evidence.safetensors": "how far Embed Tuning moved each row, by which tickets and controls are chosen",
        "selected.json": "the rows that an arm trained, with what they were chosen by",
        "contributions.safetensors": "how much of the fall of the loss each row of Embed Tuning accounts for",
        "weights.safetensors": "all weights of a fully tuned model, which are removed once the arm is scored",
        "evaluation.json": "the scores of an arm on the test split, with its translations",
        "paraphrased.json": "the scores of an arm on the test split, asked with a template that was not trained",
        "validation.json": "the NLL of an arm on the validation split",
        "tickets.json": "the tickets that the certificate of an experiment is about",
        "certificate.json": "a certificate: the share of positions that the criterion certifies, and where it fails",
        "before.safetensors": "the rows before Embed Tuning",
        "predictions.safetensors": "what the embed-tuned model predicts at every position of the test split",
        "read.safetensors": "the tokens that each position of the test split reads",
        "predictions-*.safetensors": "what the model with the copied rows of that many tickets predicts",
        "effects.json": "what each ticket alone gains, and what its absence loses, on the validation split",
        "positions.json": "how much of the gain comes through instruction, source and target tokens",
    },
    ADAPTER: {
        "adapter_config.json": "the configuration of a PEFT adapter",
        "adapter_model.safetensors": "the weights of a PEFT adapter",
        "README.md": "the card of an adapter: what it is, its base model, and how to load it",
        "tickets.json": "the tickets whose rows the adapter holds",
    },
    SCAN: {
        "scan.json": "how far the rows of every matrix shifted between two checkpoints, as JSON",
        "scan.csv": "how far the rows of every matrix shifted between two checkpoints, as CSV",
        "scan.png": "how far the rows of every matrix shifted between two checkpoints, as a figure",
    },
    MODEL: {
        "config.json": "the configuration of a model",
        "generation_config.json": "how a model generates text",
        "*.safetensors": "weights of a model",
        "*.safetensors.index.json": "the index of a sharded model: which file holds which tensor",
        "tokenizer*.json": "a part of the tokenizer of a model",
        "special_tokens_map.json": "a part of the tokenizer of a model",
        "added_tokens.json": "a part of the tokenizer of a model",
        "vocab.*": "a part of the tokenizer of a model",
        "merges.txt": "a part of the tokenizer of a model",
        "*.model": "a part of the tokenizer of a model",
        "chat_template.jinja": "how a chat becomes a prompt",
    },
}
"""What a file is, by a pattern of its name, if the marker (the key) is in the same folder. The first match counts."""

STAGES = {
    "*.corpus": "the corpus and the model of one language",
    "*.certificate": "the certificate of one language and training seed, and what it follows from",
    "*.contribution": "how much of the fall of the loss each row of Embed Tuning accounts for",
    "*.effects@*": "the effects of single tickets",
    "*.positions.*": "how much of an arm's gain comes through which tokens",
    "*.score": "the scores of an arm on the test and validation splits",
    "*.paraphrase": "the scores of an arm with a template that was not trained",
    "*": "an arm, with what it trained and what its model is made of",
}
"""What a stage of an experiment is, by its name. The first match counts."""


def described(path: Path) -> str | None:
    """What a file is, by its name and by the other files in its folder. None if no command writes it."""
    for marker, names in FILES.items():
        if (path.parent / marker).is_file():
            found = next((what for pattern, what in names.items() if fnmatch(path.name, pattern)), None)
            if found:
                return found
    return None


def stage_kind(name: str) -> str:
    """What a stage is."""
    return next(what for pattern, what in STAGES.items() if fnmatch(name, pattern))


def experiment_around(path: Path, name: str) -> Path | None:
    """The experiment whose folder ``checkpoints`` or ``claims`` a path is or is in. None if it is elsewhere."""
    places = (path, *path.absolute().parents)
    return next((place.parent for place in places if place.name == name and (place.parent / RUN).is_file()), None)
