"""Which tokens did this fine-tune touch? A notebook: marimo edit examples/notebooks/which_tokens.py."""

import marimo

app = marimo.App(app_title="Which tokens did this fine-tune touch?")


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
    # Which tokens did this fine-tune touch?

    Someone fine-tuned a language model, and you have the model before and the model after. The embedding table has a
    row for each token. Comparing the two tables row by row tells which tokens the training data had, how far their
    rows moved, and which rows no example ever reached.

    You need no training data and no GPU for this, only the two tables.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## A model before and after

    This notebook makes its own pair, so that it runs in seconds. The model is a random LLaMA with a token for each
    byte. The fine-tuning trains its embedding table on a few English words and their Spanish translations.
    """)
    return


@app.cell
def _():
    import copy

    import tiny
    import torch
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    from kslottery_fast import compare_tables

    tokenizer = tiny.tokenizer()
    before = tiny.model(tied=False, dimension=64)
    after = copy.deepcopy(before)

    table = after.requires_grad_(False).get_input_embeddings().weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([table], lr=5e-2, weight_decay=0.0)
    for _batch in DataLoader(tiny.examples(600), batch_size=6, collate_fn=default_data_collator):
        after(**_batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(tiny.texts(3))
    return after, before, compare_tables, tiny, tokenizer, torch


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## What became of every row

    `compare_tables` takes two models, two arrays, or two `nn.Embedding`. Each row gets one status:

    - **identical**: every number is equal. No example had this token.
    - **moved**: the numbers changed, but too little for the test to see.
    - **significant**: a two-sample Kolmogorov-Smirnov test tells the values before from the values after. These rows
      are the *tickets*.
    """)
    return


@app.cell
def _(after, before, compare_tables, tokenizer):
    found = compare_tables(before, after, alpha=0.05, tokenizer=tokenizer)
    print(found.summary())
    return (found,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The picture

    The distance of a row says how far it moved. D says how different the distribution of its values became: 0 for the
    same values, 1 for no overlap. Every point is a token, and the dashed line is the smallest significant D.
    """)
    return


@app.cell
def _(found, tiny, tokenizer):
    figure, _ax = plt.subplots()
    for _status, _colour in (("moved", "#a9b1b8"), ("significant", "#c8501e")):
        _rows = found.rows(_status)
        _ax.scatter(found.l2[_rows], found.statistic[_rows], s=14, color=_colour, label=f"{_status} ({len(_rows)})")
    _labels = {}  # tokens whose points lie together share a line
    for _row in found.tickets(top_k=8).token_ids.tolist():
        _point = found.l2[_row].item(), found.statistic[_row].item()
        _labels.setdefault((round(_point[0], 1), _point[1]), (_point, []))[1].append(tiny.label(tokenizer, _row))
    for _point, _texts in _labels.values():
        _ax.annotate(" ".join(_texts), _point, (5, 3), textcoords="offset points", size=8)
    _ax.margins(y=0.1)
    _ax.axhline(found.threshold_count / found.dimension, color="#656d76", linestyle="--", linewidth=0.8)
    _ax.set(title="Rows that the fine-tuning moved", xlabel="distance (L2 norm)", ylabel="KS statistic D")
    _ax.legend(loc="upper left")
    figure
    return (figure,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Check it against the data

    Here the training data are known, so the answer can be checked: the rows that changed are those of the tokens in
    the data, and no others. With a model from elsewhere, this is how you learn what its data contained.
    """)
    return


@app.cell
def _(found, tiny, torch):
    read = {
        token
        for row in tiny.examples()
        for token, following in zip(row["input_ids"], row["labels"][1:], strict=False)
        if following != -100  # the last token of a text is read, but nothing is predicted from it
    }
    touched = torch.cat([found.rows("moved"), found.rows("significant")])
    assert set(touched.tolist()) == read
    print(f"{len(touched)} of {len(found)} rows changed: those of the tokens in the data")
    return read, touched


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Keep the result

    The tickets are a set of token ids with their D and p-values. They can be saved, loaded, put on the Hub, trained
    (`attach_rows`) or copied into another model (`transfer_rows`).
    """)
    return


@app.cell
def _(found, tokenizer):
    tickets = found.tickets().with_texts(tokenizer)
    tickets
    return (tickets,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## With your own models

    - Use `compare_checkpoints("BEFORE", "AFTER")` in place of `compare_tables`. It takes folders, files of
      safetensors, PyTorch or GGUF, and repositories of the Hugging Face Hub. It loads no model and reads only the two
      tables.
    - Or stay in the shell: `kslottery select BEFORE AFTER --report rows.html` writes the same summary, a picture and
      a table of all rows.
    - In a **tied** model the output head is the same table. Predicting a token gives every row a small gradient, so
      no row stays identical, and the test is what separates the rows that matter from this noise.
    - Weight decay also moves every row, and rounding does if one side was quantized.
    - A large D says that a row moved, not that the model needs it. Adam moves rare rows as far as frequent ones.
      `row_contributions` computes what a row is worth to the loss.
    """)
    return


if __name__ == "__main__":
    app.run()
