"""Tokens, padding and the order of documents."""

import pytest
import torch

from mola_core.batches import IGNORED, Collator, Encoded, LengthGrouped, left_pad


def documents(lengths, answer=2):
    return [Encoded(list(range(1, n + 1)), n - answer) for n in lengths]


def test_left_padding():
    batch = left_pad([[5, 6, 7], [8]], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_labels_cover_the_answers_only():
    batch = Collator(pad=0, loss_on="answer")([Encoded([1, 2, 3, 4], 3), Encoded([5, 6, 7], 1)])
    # The longest answer has two tokens; one position more because the models shift labels.
    assert batch["logits_to_keep"] == 3
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 4], [IGNORED, 6, 7]]


def test_labels_cover_everything_but_padding_and_what_only_padding_precedes():
    batch = Collator(pad=0, loss_on="all")([Encoded([1, 2, 3, 4], 3), Encoded([5, 6], 1)])
    assert batch["logits_to_keep"] == 4
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, 4], [IGNORED, IGNORED, IGNORED, 6]]


@pytest.mark.parametrize(("count", "batch"), [(100, 8), (37, 8), (5, 8), (64, 64)])
def test_an_epoch_has_every_document_once(count, batch):
    sampler = LengthGrouped([i % 13 for i in range(count)], batch, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(count))
    assert list(sampler) == first, "the order depends on seed and epoch only"
    sampler.set_epoch(1)
    assert count < 10 or list(sampler) != first
    assert count < 10 or list(LengthGrouped([i % 13 for i in range(count)], batch, seed=4)) != first


def test_batches_have_little_padding_and_no_drift_of_length():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 200, (4000,), generator=generator).tolist()
    order = list(LengthGrouped(lengths, 16, seed=0))
    batches = [[lengths[i] for i in order[start : start + 16]] for start in range(0, len(order), 16)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.08
    half = len(batches) // 2
    early, late = (sum(map(sum, part)) / half for part in (batches[:half], batches[half:]))
    assert abs(early - late) / early < 0.1
