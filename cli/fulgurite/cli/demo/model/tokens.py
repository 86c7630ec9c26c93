"""The tokenizer: byte-level BPE, trained on the corpus.

Digits and punctuation marks are tokens of their own: every bracket is one token, and sums can be learned.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from fulgurite.cli.demo.model.corpus import documents

VOCABULARY = 1024
START, END, PAD = "<s>", "</s>", "<pad>"
CONTEXT = 512
WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+"


def train_tokenizer(seed: int, *, sample: int = 20_000) -> Any:
    """A `PreTrainedTokenizerFast` with VOCABULARY tokens, from `sample` documents of the corpus."""
    from tokenizers import Tokenizer, decoders, models, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = _splitter()
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(islice(documents(seed), sample), _trainer(trainers))
    core.post_processor = _framing()
    return _wrapped(core)


def _wrapped(core: Any) -> Any:
    import transformers

    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(
        tokenizer_object=core,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        truncation_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _splitter() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _trainer(trainers: Any) -> Any:
    from tokenizers import pre_tokenizers

    return trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _framing() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(PAD, 0), (START, 1), (END, 2)]
    )
