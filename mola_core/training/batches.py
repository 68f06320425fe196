"""Prompts as token batches: the same left-padded form for training and evaluation.

Answers stand at the end of every row, so a model need compute logits for the last few positions only
(`logits_to_keep`): with a vocabulary of 49,152 the output layer is a fifth of SmolLM2's arithmetic.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mola_core.models.attention import Packed
from mola_core.models.tokens import Encoded

IGNORED = -100
"""Label of a token without loss (PyTorch's `ignore_index`)."""
POOL = 32
"""Optimiser batches that are sorted by length together: more saves padding, fewer mixes lengths better."""


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and position_ids, each (rows, longest), padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, width - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


class Collator:
    """Encoded documents -> a training batch with labels for the last `logits_to_keep` positions only.

    The models' own loss shifts labels by one, so one position more than the longest answer is kept.
    """

    def __init__(self, pad: int, loss_on: str) -> None:
        self.pad = pad
        self.whole = loss_on == "all"

    def __call__(self, documents: Sequence[Encoded]) -> dict[str, Any]:
        documents = _asked(documents)
        batch: dict[str, Any] = left_pad([document.tokens for document in documents], self.pad)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        kept = labels.shape[1]
        for row, document in zip(labels, documents, strict=True):
            row[-len(document.tokens)] = IGNORED  # nothing but padding stands before the first token
        if not self.whole:
            answers = [len(document.tokens) - document.prompt_length for document in documents]
            kept = min(kept, max(answers) + 1)
            for row, answer in zip(labels, answers, strict=True):
                row[: len(row) - answer] = IGNORED
        batch["labels"] = labels[:, -kept:].contiguous()
        batch["logits_to_keep"] = kept
        return batch


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all prompts begin, such as those of an instruction; at least one is left to each."""
    return len(os.path.commonprefix([list(prompt[:-1]) for prompt in prompts]))


class Packer:
    """Encoded documents -> one row in which the tokens that all prompts begin with stand once, not once a document.

    An attention mask (1, 1, length, length) lets a document see the shared beginning and itself; with positions as if
    it stood alone its loss and gradients are those of `Collator`, up to rounding. An instruction of 37 tokens before
    sentences of 10 (CoLA) is most of the work otherwise. Loss is on the answers.
    """

    def __call__(self, documents: Sequence[Encoded]) -> dict[str, Any]:
        documents = _asked(documents)
        shared = shared_length([document.tokens[: document.prompt_length] for document in documents])
        tokens = documents[0].tokens[:shared]
        owners, positions = [0] * shared, list(range(shared))
        predicting: list[int] = []
        answers: list[int] = []
        for owner, document in enumerate(documents, 1):
            offset = len(tokens) - shared
            predicting += range(offset + document.prompt_length - 1, offset + len(document.tokens) - 1)
            answers += document.tokens[document.prompt_length :]
            tokens = tokens + document.tokens[shared:]
            positions += range(shared, len(document.tokens))
            owners += [owner] * (len(document.tokens) - shared)
        owner_of = torch.tensor(owners)
        seen = ((owner_of.unsqueeze(1) == owner_of) | (owner_of == 0)).tril()
        targets = torch.tensor([answers], dtype=torch.long)
        return {
            "input_ids": torch.tensor([tokens]),
            "position_ids": torch.tensor([positions]),
            "attention_mask": seen[None, None],
            "packed": Packed(shared, tuple(len(document.tokens) - shared for document in documents)),
            "logits_to_keep": torch.tensor(predicting, dtype=torch.long),
            "labels": targets,
            "shift_labels": targets,  # already beside the logits that predict them
        }


def unasked(documents: Sequence[Encoded]) -> Encoded:
    """A document without an answer, and so without loss, which fills a batch that several processes share."""
    return Encoded(documents[0].tokens[:1], 1)


def _asked(documents: Sequence[Encoded]) -> Sequence[Encoded]:
    """Those of a micro-batch that are trained on; one that is not where there are none, since a batch needs a row."""
    return [one for one in documents if one.prompt_length < len(one.tokens)] or documents[:1]


class LengthGrouped(torch.utils.data.Sampler[int]):
    """Document order of an epoch: batches of like length, in random order.

    Documents are shuffled, sorted by length within pools of `POOL` optimiser batches, cut into batches, and the
    batches shuffled: little padding, and no drift from long to short documents within an epoch (which the Trainer's
    own length grouping has). Seed and epoch decide the order, so a resumed training sees the same batches.

    Where several processes share a batch, each takes a micro-batch of every `together` documents. A short last batch would
    be filled with the epoch's first documents, which would then count twice: `filling` places behind the documents' are
    for `unasked` ones instead.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, together: int = 1) -> None:
        self.lengths = torch.tensor(lengths)
        self.filling = -len(lengths) % together
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.filling

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        pools = order.split(self.batch_size * POOL)
        ordered = torch.cat(
            [pool[self.lengths[pool].argsort(descending=True, stable=True)] for pool in pools]
        )
        batches = ordered.split(self.batch_size)
        # A short last batch stays last: the Trainer counts steps by position.
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        shuffled = [whole[index] for index in torch.randperm(len(whole), generator=generator)]
        filling = torch.arange(len(self.lengths), len(self))
        return iter(torch.cat([*shuffled, *rest, filling]).tolist())


def first_micro_batches(
    documents: Sequence[Encoded],
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    pad: int,
    loss_on: str,
    count: int,
) -> list[dict[str, Any]]:
    """The first `count` micro-batches that a training with `seed` sees, for what looks at data before it."""
    order = list(LengthGrouped([len(document.tokens) for document in documents], batch_size, seed))
    order = order[: count * micro_batch_size]
    collate = Collator(pad, loss_on)
    places = [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]
    return [collate([documents[index] for index in batch]) for batch in places]
