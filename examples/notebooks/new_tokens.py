"""Train five new tokens. A notebook: marimo edit examples/notebooks/new_tokens.py."""

import marimo

app = marimo.App(app_title="Train five new tokens")


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
    # Train five new tokens

    A token that you add to a tokenizer has a row in the embedding table, and nothing has taught the model what it
    means. This notebook adds five tokens and trains their five rows alone. All other weights keep their bits, so the
    model cannot forget anything.
    """)
    return


@app.cell
def _():
    import tiny
    import torch

    from kslottery_fast import RowAdamW, add_tokens, attach_rows, embedding_table, get_rows, load_adapter, save_adapter

    model, tokenizer = tiny.model(), tiny.tokenizer()  # random, with a token for each byte
    words = {"house": "<casa>", "file": "<archivo>", "save": "<guardar>", "red": "<rojo>", "page": "<página>"}
    return (
        RowAdamW,
        add_tokens,
        attach_rows,
        embedding_table,
        get_rows,
        load_adapter,
        model,
        save_adapter,
        tiny,
        tokenizer,
        torch,
        words,
    )


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## 1. Add the tokens

    `add_tokens` extends the tokenizer, grows the tables of the model, and gives the new rows a start. With
    `init="pieces"` a row starts from the mean of the pieces that its text was read as before. That is closer to a
    meaning than a random row.
    """)
    return


@app.cell
def _(add_tokens, model, tokenizer, words):
    new = add_tokens(model, tokenizer, list(words.values()), init="pieces")
    print(new)
    print(tokenizer.tokenize("red = <rojo>"))
    return (new,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## 2. Attach their rows

    `attach_rows` freezes the model and makes these rows its only trainable parameter. The head of this model is tied
    to the table, so a row is both what the model reads and what it predicts. For an untied model the head gets rows
    of its own without further ado.
    """)
    return


@app.cell
def _(attach_rows, embedding_table, model, new):
    original = embedding_table(model).detach().clone()
    attach_rows(model, new)
    for _name, _parameter in model.named_parameters():
        if _parameter.requires_grad:
            print(_name, list(_parameter.shape))
    return (original,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## 3. Train

    The sentences say what each token means. The loss counts the last token only, since that is the one to learn.
    """)
    return


@app.cell
def _(RowAdamW, get_rows, model, tokenizer, torch, words):
    def loss_and_probabilities():
        """Return the NLL of the new tokens, and the probability of each new token after each word."""
        prompts = tokenizer([f"{word} = " for word in words], return_tensors="pt", padding=True, padding_side="left")
        logits = model(**prompts).logits[:, -1]
        right = torch.tensor(tokenizer.convert_tokens_to_ids(list(words.values())))
        return torch.nn.functional.cross_entropy(logits, right), logits.softmax(dim=-1)[:, right]

    optimizer = RowAdamW([get_rows(model).rows], lr=1e-2)
    with torch.no_grad():
        _, untrained = loss_and_probabilities()
    losses = []
    for _ in range(150):
        _loss, _ = loss_and_probabilities()
        _loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(_loss.item())
    with torch.no_grad():
        _, trained = loss_and_probabilities()
    print(f"NLL of the new tokens: {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses, trained, untrained


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## 4. Look

    Each row of the squares is a word, and each column a new token. After training, the model says the right token
    after each word.
    """)
    return


@app.cell
def _(losses, trained, untrained, words):
    figure, (_left, _middle, _right) = plt.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _left.plot(losses)
    _left.set(title="NLL of the new tokens", xlabel="step", ylabel="nats", ylim=(0, None))
    for _ax, _shown, _title in ((_middle, untrained, "Before"), (_right, trained, "After")):
        _ax.imshow(_shown, cmap="Blues", vmin=0, vmax=1)
        _ax.set_xticks(range(5), list(words.values()), rotation=60, ha="right", size=7)
        _ax.set_yticks(range(5), list(words) if _ax is _middle else [], size=7)
        _ax.set_title(_title)
        _ax.grid(False)
    figure
    return (figure,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## 5. Save the rows alone

    The adapter is a small folder in the format of PEFT. It keeps the strings of the tokens too. `load_adapter` adds
    them to a fresh tokenizer, grows a fresh model and attaches the rows.
    """)
    return


@app.cell
def _(embedding_table, get_rows, load_adapter, model, original, save_adapter, tiny, tokenizer, torch):
    import tempfile

    with tempfile.TemporaryDirectory() as _folder:
        save_adapter(model, _folder, tokenizer=tokenizer)
        _size = sum(file.stat().st_size for file in Path(_folder).iterdir())
        fresh, fresh_tokenizer = tiny.model(), tiny.tokenizer()
        load_adapter(fresh, _folder, tokenizer=fresh_tokenizer)

    assert torch.equal(get_rows(fresh).rows, get_rows(model).rows)
    assert torch.equal(embedding_table(model), original)  # the trained rows lie over the table, which has not changed
    print(f"{_size / 1024:.0f} KiB; the other {len(tiny.tokenizer())} rows have the bits that they had")
    return fresh, fresh_tokenizer


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## With your own model

    - Load the model and its tokenizer with `from_pretrained`, and take many sentences for each token. Twenty that use
      it in different ways teach more than one that defines it.
    - Keep the sentences in batches, and let the whole sentence count for the loss.
    - `special=True` is for tokens of a chat template, which `skip_special_tokens` removes from the output.
    - `TicketTrainer(model=..., tickets=new)` trains them in a transformers `Trainer`, and a mixin does so in TRL's
      `SFTTrainer`.
    - `merge_rows(model).save_pretrained(...)` writes an ordinary model, which needs neither this package nor PEFT.
    - `push_adapter(model, "org/name")` puts the adapter on the Hugging Face Hub.
    """)
    return


if __name__ == "__main__":
    app.run()
