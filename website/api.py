"""The API reference: which public names stand on which page. The text of the pages comes from the docstrings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page of the reference.

    Attributes
    ----------
    path : str
        Its file in the site.
    title : str
        Its heading.
    text : str
        What the page is about.
    names : tuple of str
        What it documents, each below ``kslottery_fast``, in the order of the page.
    """

    path: str
    title: str
    text: str
    names: tuple[str, ...]


PAGES = (
    Page(
        "api/tickets.md",
        "Tickets and comparisons",
        "Which rows did a training move? These functions compare models, tables and checkpoints. "
        "[Compare two checkpoints](../checkpoints.md) shows their use.",
        (
            "ks_select",
            "ks_select_rows",
            "ks_select_checkpoints",
            "tickets.ks_select_sharded",
            "tickets.l2_select_checkpoints",
            "tickets.select_tickets",
            "ks_statistics",
            "Tickets",
            "compare_tables",
            "compare_checkpoints",
            "TableComparison",
            "tickets.select_rows",
            "tickets.SelectedRows",
            "tickets.scan.scan_checkpoints",
            "tickets.scan_result.Scan",
        ),
    ),
    Page(
        "api/ks.md",
        "KS tests",
        "Two-sample Kolmogorov-Smirnov tests of any samples. "
        "[KS tests on many columns](../ks-tests.md) shows their use.",
        (
            "ks_2samp",
            "KsResult",
            "ks_frames",
            "KsFrameResult",
            "ks.ColumnTest",
            "ks_stream",
            "ks.KsStreamResult",
            "KsAccumulator",
            "ks.adjust",
            "ks.benjamini_hochberg",
            "ks.CORRECTIONS",
            "ks.pvalues",
            "ks.log_pvalues",
            "ks.critical_count",
            "ks.asymptotic_threshold",
            "ks.check_alpha",
            "ks.resolve_table_method",
        ),
    ),
    Page(
        "api/rows.md",
        "Rows and training",
        "Rows of an embedding table that train while everything else is frozen. [Train rows](../training.md), "
        "[Train new tokens](../new-tokens.md) and [Several sets](../several-sets.md) show their use.",
        (
            "attach_rows",
            "merge_rows",
            "detach_rows",
            "get_rows",
            "get_output_rows",
            "has_rows",
            "rows.attached_model",
            "rows.output_role",
            "rows.RowEmbedding",
            "add_tokens",
            "rows.TokenInit",
            "add_rows",
            "use_rows",
            "mixed_rows",
            "remove_rows",
            "row_sets",
            "transfer_rows",
            "untie_output",
            "embedding_table",
            "is_tied",
            "active_token_ids",
            "rows.TokenIds",
            "rows.check_token_ids",
            "rows.gather_rows",
            "rows.replicate_rows",
            "RowAdamW",
            "optim.adam_excursion",
            "optim.adam_excursion_limit",
            "TicketTrainer",
            "TicketSeq2SeqTrainer",
            "integrations.trainer.TicketTrainerMixin",
            "integrations.monitor.TicketMonitor",
        ),
    ),
    Page(
        "api/evaluation.md",
        "Evaluation",
        "What a model does on held-out pairs, what a row accounts for, and the certificate. "
        "[The method](../method.md) explains both.",
        (
            "evaluate",
            "Evaluation",
            "Example",
            "certify",
            "Certificate",
            "row_contributions",
            "RowContributions",
            "evaluation.intervals.mean_lower_bound",
            "evaluation.logit_bounds.margin_bounds",
            "evaluation.selection_certificate.selection_certificate",
            "evaluation.toy.alphabet_model",
        ),
    ),
    Page(
        "api/checkpoints.md",
        "Adapters, checkpoints and models",
        "What is written to disk and to the Hub, and how models are loaded.",
        (
            "save_adapter",
            "load_adapter",
            "rows.save_rows_adapter",
            "rows.push_adapter",
            "integrations.lora_rows.save_lora_and_rows",
            "integrations.lora_rows.load_lora_and_rows",
            "attach_checkpoint",
            "checkpoint_to_adapter",
            "checkpoints.opening.open_checkpoint",
            "integrations.pretrained.load_causal_lm",
            "lab.models.load_model",
            "lab.models.LoadedModel",
            "lab.data.corpora.load_corpus",
        ),
    ),
    Page(
        "api/errors.md",
        "Errors and operators",
        "The errors that this package raises, and its operators for torch. "
        "[All error messages](../errors.md) are on a page of their own.",
        (
            "InputError",
            "base.errors.DivergedError",
            "ops.ks_statistics",
            "ops.ks_decide",
            "ops.ks_rows",
            "ops.row_embedding",
            "ops.row_embedding_backward",
            "row_adamw_",
            "ops.row_adamw_step_",
            "ops.info",
        ),
    ),
)

LINKED = {name.rpartition(".")[2]: f"kslottery_fast.{name}" for page in PAGES for name in page.names}
"""The id of every documented name in the site, by the name itself."""


def markdown(page: Page) -> str:
    """Return a page of the reference, in which mkdocstrings replaces the lines that begin with ``:::``."""
    blocks = [f"# {page.title}", page.text, *(f"::: kslottery_fast.{name}" for name in page.names)]
    return "\n\n".join(blocks) + "\n"


def overview() -> str:
    """Return the first page of the reference: all names, with links."""
    lines = ["# API reference", "", "These are the public names, by what they are for.", ""]
    for page in PAGES:
        links = ", ".join(f"[`{name.rpartition('.')[2]}`][kslottery_fast.{name}]" for name in page.names)
        lines += [f"**[{page.title}]({page.path.removeprefix('api/')})**: {links}", ""]
    return "\n".join(lines)
