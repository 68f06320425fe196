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


def split(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of what follows it, cut as lm-eval cuts a context from its continuation.

    Both are encoded as one text, of which the prompt takes as many tokens as it has alone; blanks at its end belong to
    the completion. A text that begins with the BOS token's own text gets no other. Nothing can be computed without a
    token to start from: where the prompt has none it is lm-eval's prefix token, BOS, else the end-of-text token.
    """
    bos, prefix = tokenizer.bos_token_id, tokenizer.bos_token_id
    if prefix is None:
        prefix = tokenizer.eos_token_id
    stripped = prompt.rstrip()
    whole = stripped + prompt[len(stripped) :] + completion
    tokens = tokenizer(whole, add_special_tokens=False).input_ids
    if not prompt:
        return (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)
    length = len(tokenizer(stripped, add_special_tokens=False).input_ids)
    start = [bos] if adds_bos(tokenizer) and not whole.startswith(str(tokenizer.bos_token)) else []
    return (start + tokens[:length]) or [prefix], tokens[length:]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, max_length: int, end: bool = False
) -> Encoded:
    """Tokens of `prompt + completion` as `split` cuts them. `end` appends the end-of-text token.

    Over `max_length` tokens the prompt loses its beginning, but for a BOS token. Raises ValueError where the completion
    alone is too long, or has no token.
    """
    prompt_ids, answer = split(tokenizer, prompt, completion)
    if not answer:
        raise ValueError(
            f"the answer {completion!r} has no token of its own: this tokenizer merges it with the prompt's end "
            f"{prompt[-20:]!r}; change the task's target_delimiter, or use another model"
        )
    answer = answer + ([_end(tokenizer)] if end else [])
    kept = 1 if prompt_ids[:1] == [tokenizer.bos_token_id] and adds_bos(tokenizer) else 0
    room = max_length - len(answer) - kept
    if room < 1:
        raise ValueError(
            f"max_length {max_length} leaves no room for a prompt: the answer has {len(answer)} tokens; raise "
            "training.max_length, or where the model takes no more remove the document"
        )
    prompt_ids = prompt_ids[:kept] + prompt_ids[kept:][-room:]
    return Encoded(prompt_ids + answer, len(prompt_ids))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Encoded:
    """Tokens of a text that is trained on as a whole, with the end-of-text token; cut off at `max_length`."""
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    return Encoded((bos + tokens + [_end(tokenizer)])[:max_length], 0)


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, with which an answer ends; set eos_token in tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)
