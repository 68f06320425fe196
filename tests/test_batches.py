"""Tokens, padding and the order of documents."""

import pytest
import torch

from mola_core.methods.settings import AdapterSettings, MethodSettings
from mola_core.models.tokens import Encoded
from mola_core.models.weights import new_adapter
from mola_core.training.batches import (
    IGNORED,
    Collator,
    LengthGrouped,
    Packer,
    left_pad,
    shared_length,
    unasked,
)


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


def test_what_fills_a_batch_of_several_processes_has_no_loss():
    rows = [Encoded([1, 2, 3, 4], 2), Encoded([5, 6], 1)]
    sampler = LengthGrouped([4] * 20, 16, seed=0, together=8)
    order = list(sampler)
    assert len(order) == len(sampler) == 24 and sorted(order) == list(range(24))
    assert sorted(order[-4:]) == [20, 21, 22, 23], "behind the last batch"
    for collate in (Collator(0, "answer"), Collator(0, "all"), Packer()):
        alone = collate([unasked(rows)] * 4)
        assert alone["input_ids"].numel() == 1 and (alone["labels"] == IGNORED).all()
        beside, without = collate([*rows, unasked(rows)]), collate(rows)
        assert beside["input_ids"].equal(without["input_ids"]) and beside["labels"].equal(without["labels"])


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


def test_the_shared_beginning_leaves_each_prompt_a_token():
    assert shared_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_length([[1, 2, 3], [1, 2]]) == 1
    assert shared_length([[1], [2]]) == 0


@pytest.mark.parametrize("instruction", [[7, 8, 9, 10], []], ids=["shared", "nothing shared"])
def test_packed_documents_train_as_padded_ones(tiny_llama, instruction, tmp_path):
    rows = [
        Encoded([*instruction, 11, 12, 13, 14, 15], len(instruction) + 3),
        Encoded([*instruction, 21, 22], len(instruction) + 1),
        Encoded([*instruction, 31, 32, 33, 34], len(instruction) + 2),
    ]
    gradients, losses = [], []
    method = MethodSettings(method="mola-2468")
    for collate in (Collator(0, "answer"), Packer()):
        torch.manual_seed(0)
        model = new_adapter(tiny_llama(), method, AdapterSettings(rank=2, dropout=0.0), tmp_path)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        batch = collate(rows)
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert batch["input_ids"].numel() == len(instruction) + 5 + 2 + 4
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
