"""Tokens of a document, cut where lm-eval cuts a context from its continuation. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One document as tokens: the first `prompt_length` of `tokens` are the prompt."""

    tokens: list[int]
    prompt_length: int


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's own habit is to begin a text with its BOS token: the policy used everywhere."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, max_length: int, end: bool = False
) -> Encoded:
    """Tokens of `prompt + completion`, cut where lm-eval cuts a context from its continuation.

    Over `max_length` tokens the prompt loses its beginning. `end` appends the end-of-text token.
    Raises ValueError where the completion alone is too long.
    """
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    stripped = prompt.rstrip()
    completion = prompt[len(stripped) :] + completion
    prompt_ids = tokenizer(stripped, add_special_tokens=False).input_ids
    tokens = tokenizer(stripped + completion, add_special_tokens=False).input_ids
    tokens = tokens + [tokenizer.eos_token_id] * end
    answer = tokens[len(prompt_ids) :]
    room = max_length - len(answer) - len(bos)
    if room < 1:
        raise ValueError(
            f"max_length {max_length} leaves no room for a prompt: the answer has {len(answer)} tokens"
        )
    prompt_ids = bos + tokens[: len(prompt_ids)][-room:]
    return Encoded(prompt_ids + answer, len(prompt_ids))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Encoded:
    """Tokens of a text that is trained on as a whole, with the end-of-text token; cut off at `max_length`."""
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    return Encoded((bos + tokens + [tokenizer.eos_token_id])[:max_length], 0)
