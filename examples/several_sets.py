"""One model, several ticket sets: switched without copying, and mixed in one batch."""

import tiny
import torch

from kslottery_fast import add_rows, attach_rows, get_rows, mixed_rows, row_sets, use_rows

tokenizer = tiny.tokenizer()
model = attach_rows(tiny.model(), tokenizer(" =a")["input_ids"], name="en-es").eval()
add_rows(model, "en-ca", tokenizer(" =eo")["input_ids"])  # or load_adapter(model, path, name="en-ca")
with torch.no_grad():
    for row_set in get_rows(model).row_sets.values():
        row_set.rows.add_(torch.randn_like(row_set.rows))  # instead of training

prompts = tokenizer(["house =", "house =", "house ="], return_tensors="pt")
options = {"max_new_tokens": 8, "do_sample": False}
with mixed_rows(model, ["en-es", "en-ca", None]):  # one name an example; None is the base model
    mixed = model.generate(**prompts, **options)

for name, text in zip([*row_sets(model), None], tokenizer.batch_decode(mixed), strict=True):
    use_rows(model, name)  # for all of the batch from here on
    alone = model.generate(**{key: value[:1] for key, value in prompts.items()}, **options)
    print(f"{name!s:6} {text!r}")
    assert tokenizer.decode(alone[0]) == text
