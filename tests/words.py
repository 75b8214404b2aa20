"""A tokenizer of transformers that is not part of visionzoo: eight words, whose end token has not the highest id."""

from __future__ import annotations

from pathlib import Path


def word_tokenizer(folder: str | Path, *more: str, rule: str = "[S] $A [E]") -> None:
    """Write it to ``folder``, with the words ``more``; ``rule`` says what stands around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["[PAD]", "[S]", "[E]", "[UNK]", "a", "red", "blue", "square", *more]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = [("[S]", 1), ("[E]", 2)]
    inner.post_processor = processors.TemplateProcessing(rule, special_tokens=special)  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
