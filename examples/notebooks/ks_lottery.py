"""KS-Lottery end to end. A notebook: marimo edit examples/notebooks/ks_lottery.py."""

import marimo

app = marimo.App(app_title="KS-Lottery end to end")


with app.setup(hide_code=True):
    import sys
    from pathlib import Path

    import marimo as mo
    import matplotlib.pyplot as plt

    sys.path.append(str(Path(__file__).parents[1]))  # where tiny.py is
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


@app.cell(hide_code=True)
def _():
    mo.md("""
    # KS-Lottery end to end

    The lottery-ticket hypothesis says that a small part of a network can do the work of the whole. KS-Lottery (Yuan
    et al., NAACL 2025) looks for that part in the embedding table: a few rows that, trained alone, teach a model a
    language.

    1. **Embed Tuning** trains the rows of all tokens in the data. Everything else is frozen.
    2. **The KS test** compares each row with what it was. Rows whose values have another distribution are the
       *winning tickets*.
    3. **Partial Tuning** trains only the tickets, again from the original model. **Partial Transfer** copies their
       tuned rows instead, without training.

    Controls tell whether the test chose well: as many rows, chosen by frequency or at random.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Data and model

    The words are English and Spanish, and the last eight pairs are held out. The model is a random LLaMA with a token
    for each byte, which knows nothing. It learns which letters follow which. That is enough to see every step at
    work, but **its numbers say nothing about the method**. The results on a real model are in docs/results.md.
    """)
    return


@app.cell
def _():
    import tiny
    import torch

    from kslottery_fast import (
        Example,
        RowAdamW,
        active_token_ids,
        attach_rows,
        get_rows,
        ks_select_rows,
        merge_rows,
        transfer_rows,
    )
    from kslottery_fast.evaluation.likelihood import nll

    tokenizer = tiny.tokenizer()
    pairs = [
        *(("house", "casa"), ("file", "archivo"), ("save", "guardar"), ("red", "rojo"), ("all", "todo")),
        *(("page", "página"), ("image", "imagen"), ("window", "ventana"), ("close", "cerrar"), ("open", "abrir")),
        *(("add", "añadir"), ("search", "buscar"), ("delete", "eliminar"), ("change", "cambiar"), ("name", "nombre")),
        *(("word", "palabra"), ("language", "idioma"), ("site", "sitio"), ("user", "usuario"), ("day", "día")),
        *(("list", "lista"), ("text", "texto"), ("send", "enviar"), ("create", "crear"), ("table", "tabla")),
        *(("group", "grupo"), ("date", "fecha"), ("edit", "editar"), ("code", "código"), ("title", "título")),
    ]
    train, held_out = pairs[:-8], [Example(f"{english} = ", spanish) for english, spanish in pairs[-8:]]
    batch = tokenizer([f"{english} = {spanish}</s>" for english, spanish in train], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return (
        RowAdamW,
        active_token_ids,
        attach_rows,
        batch,
        get_rows,
        held_out,
        ks_select_rows,
        labels,
        merge_rows,
        nll,
        tiny,
        tokenizer,
        torch,
        transfer_rows,
    )


@app.cell
def _(RowAdamW, attach_rows, batch, get_rows, labels, tiny):
    def train_rows(token_ids, steps=100):
        """Train these rows of a fresh model, and return the model with the rows attached."""
        model = attach_rows(tiny.model(), token_ids)
        optimizer = RowAdamW([get_rows(model).rows], lr=5e-2, lazy=True)
        for _ in range(steps):
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    return (train_rows,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Stage 1: Embed Tuning

    The rows of all tokens that occur in the data train. With `lazy=True` a row moves only in steps that have its
    token, as in the experiments of this package.
    """)
    return


@app.cell
def _(active_token_ids, batch, train_rows):
    active = active_token_ids([batch])
    active = active[active != 0]  # not the padding token
    embed_tuned = train_rows(active)
    print(f"{len(active)} rows trained")
    return active, embed_tuned


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The KS test

    Each row is compared with itself before training. D is the largest gap between the two distribution functions of
    its 32 values, and alpha the significance level. A smaller alpha selects fewer rows.
    """)
    return


@app.cell
def _(embed_tuned, ks_select_rows, tokenizer):
    tickets = ks_select_rows(embed_tuned, alpha=0.05, tokenizer=tokenizer)
    print(tickets.summary())
    print(tickets.token_texts)
    return (tickets,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    This is the test of a single row, the one of largest D. Each curve is a distribution function: the share of the
    row's values that are at most x.
    """)
    return


@app.cell
def _(embed_tuned, get_rows, tickets, tiny, torch):
    _row = tickets.token_ids[0]
    _after = get_rows(embed_tuned).rows[get_rows(embed_tuned).token_ids == _row][0].detach().sort().values
    _before = tiny.model().get_input_embeddings().weight[_row].detach().sort().values
    _x = torch.cat([_before, _after]).sort().values
    _gap = torch.searchsorted(_before, _x, right=True) - torch.searchsorted(_after, _x, right=True)
    _at = _x[_gap.abs().argmax()]
    _low, _high = ((values <= _at).double().mean() for values in (_before, _after))
    test_figure, _ax = plt.subplots(figsize=(5.4, 2.8))
    _ax.ecdf(_before, label="before")
    _ax.ecdf(_after, label="after")
    _ax.vlines(_at, min(_low, _high), max(_low, _high), color="#1f2328", linewidth=1.2)
    _ax.annotate(f"D = {tickets.statistic[0]:.2f}", (_at, (_low + _high) / 2), (6, 0), textcoords="offset points")
    _ax.set(title=f"The row of {tickets.token_texts[0]!r}", xlabel="value", ylabel="share of the values")
    _ax.legend(loc="lower right")
    test_figure
    return (test_figure,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Stage 2: the tickets alone, and the controls

    Partial Tuning starts again from the original model. The controls get the same number of rows and the same
    training.
    """)
    return


@app.cell
def _(active, batch, embed_tuned, merge_rows, tickets, tiny, torch, train_rows, transfer_rows):
    k = len(tickets)
    counts = torch.bincount(batch["input_ids"].flatten(), minlength=259)
    counts[0] = 0  # the padding token
    frequent = counts.argsort(descending=True)[:k]
    drawn = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(0))[:k]]

    models = {
        "untuned": tiny.model(),
        "Embed Tuning": merge_rows(embed_tuned),
        "Partial Transfer": transfer_rows(embed_tuned, tiny.model(), tickets),
        "Partial Tuning": merge_rows(train_rows(tickets)),
        "frequent rows": merge_rows(train_rows(frequent)),
        "random rows": merge_rows(train_rows(drawn)),
    }
    return k, models


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Held-out pairs

    NLL is the mean of -ln p over the tokens of the Spanish words, in nats. Lower is better. The intervals are of 95%,
    by a bootstrap over the eight words, and with so few words they are wide.
    """)
    return


@app.cell
def _(active, held_out, k, models, nll, tokenizer):
    scores = {name: nll(model, tokenizer, held_out) for name, model in models.items()}
    for _name, _score in scores.items():
        print(f"{_name:17} {_score.interval.value:.2f}")
    figure, _ax = plt.subplots()
    _rows = {"untuned": 0, "Embed Tuning": len(active)}
    _labels = [f"{name} ({_rows.get(name, k)})" for name in scores]
    for _place, _score in enumerate(scores.values()):
        _colour = ["#7d858c", "#0a66a8", "#5aa9dd", "#c8501e", "#0f8f6b", "#b56597"][_place]
        _ax.errorbar(
            _score.interval.value,
            _place,
            xerr=[[_score.interval.value - _score.interval.low], [_score.interval.high - _score.interval.value]],
            fmt="o",
            color=_colour,
        )
    _ax.set_yticks(range(len(_labels)), _labels)
    _ax.invert_yaxis()
    _ax.grid(axis="y", visible=False)
    _ax.set(title="Held-out NLL (in brackets: rows that changed)", xlabel="nats per token")
    figure
    return figure, scores


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## With a real model

    - `make demo` runs all of this on SmolLM2-135M and real translations, with a report. `kslottery run --model ...
      --corpus pairs.tsv` does so with your model and data.
    - In your own training loop, replace `tiny.model()` by `from_pretrained`, or use `TicketTrainer`, which has both
      stages.
    - Real rows have hundreds or thousands of values. The test is then far more sensitive than with 32.
    - The optimizer decides which rows the test finds. Plain Adam moves rare rows as far as frequent ones, and the
      test then prefers rare tokens. docs/studies.md shows what lazy updates and a larger eps change.
    - Rows by *contribution* (`row_contributions`) were better than KS rows in the experiments of docs/results.md.
      Always run the controls.
    """)
    return


if __name__ == "__main__":
    app.run()
