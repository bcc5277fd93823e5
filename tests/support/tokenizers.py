"""Small real tokenizers of the kinds that bases have, trained in a moment on Python's own documentation."""

from __future__ import annotations

import pydoc_data.topics
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: bytes, blanks belong to the next word; offsets are trimmed by its post-processor."""
    return Tokenizer.from_str(_byte_level())


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    _train(tokenizer, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer.to_str()


def metaspace() -> Tokenizer:
    """As Llama 2 and Mistral: SentencePiece's blanks, and <s> set before a text by the post-processor."""
    return Tokenizer.from_str(_metaspace())


@cache
def _metaspace() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL_TOKENS, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer.to_str()


def _train(tokenizer: Tokenizer, trainer: trainers.BpeTrainer) -> None:
    names = sorted(pydoc_data.topics.topics)[:40]
    tokenizer.train_from_iterator([pydoc_data.topics.topics[name][:3000] for name in names], trainer)
