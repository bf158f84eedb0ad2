"""TicketSeq2SeqTrainer: a Seq2SeqTrainer of transformers that trains the rows of a few tokens."""

import transformers

from .trainer import TicketTrainerMixin


class TicketSeq2SeqTrainer(TicketTrainerMixin, transformers.Seq2SeqTrainer):
    """A ``transformers.Seq2SeqTrainer``, which evaluates on generated text, that trains rows and nothing else.

    Parameters, errors and warnings are those of :class:`kslottery_fast.TicketTrainer`. ``args`` are
    Seq2SeqTrainingArguments, for example with ``predict_with_generate=True``.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration
    >>> sizes = {"d_model": 4, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    >>> model = T5ForConditionalGeneration(T5Config(vocab_size=10, decoder_start_token_id=0, **sizes))
    >>> args = Seq2SeqTrainingArguments(tempfile.mkdtemp(), report_to=[], use_cpu=True, predict_with_generate=True)
    >>> data = [{"input_ids": [4, 2, 3], "labels": [2, 3]}]
    >>> trainer = TicketSeq2SeqTrainer(model=model, args=args, train_dataset=data, tickets=[2, 3])
    >>> [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    [('shared.row_sets.default.rows', [2, 4])]
    """
