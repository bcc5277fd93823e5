"""Small real tokenizers of the kinds that bases have, trained in a moment on Python's own documentation."""

from __future__ import annotations

import pydoc_data.topics
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

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


CHAT_MARKERS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
CHAT_MARKERS += ["<|start_header_id|>", "<|end_header_id|>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|turn>"]
CHAT_MARKERS += ["<turn|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "<|eot|>"]
CHAT_MARKERS += ["<|tool_response>", "<|system|>", "<|observation|>", "[gMASK]", "<sop>", "<|START_OF_TURN_TOKEN|>"]
CHAT_MARKERS += ["<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "[INST]", "[/INST]"]
CHAT_MARKERS += ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
"""Special tokens of the templates of many families."""
_LINES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut a text: line ends run together, whatever follows."""


def chat_level() -> Tokenizer:
    """As Llama 3 and Qwen cut texts, with the markers of many families and the think tags as tokens."""
    return Tokenizer.from_str(_chat_level())


@cache
def _chat_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LINES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    _train(tokenizer, trainer)
    markers = [AddedToken(marker, special=True, normalized=False) for marker in CHAT_MARKERS]
    tokenizer.add_special_tokens(markers)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
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
