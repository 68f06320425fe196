"""Evaluate one cell through lm-evaluation-harness, document by document."""

from __future__ import annotations

import logging
import os.path
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from mola_core.errors import MolaError
from mola_core.evaluation.unanswered import numbered
from mola_core.models.attention import window
from mola_core.models.loading import positions
from mola_core.models.precision import computed_in
from mola_core.models.tokens import adds_bos, split
from mola_core.tasks.check import chance
from mola_core.tasks.loading import golds_in_prompts
from mola_core.training.batches import left_pad
from mola_core.training.trainer import TOLD_EVERY

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mola_core.study.sections import EvaluationSettings
    from mola_core.tasks import Example

Request = tuple[tuple[str, str], list[int], list[int]]
"""lm-eval's: the strings, the context's tokens, the option's tokens."""


class AnswerLM(HFLM):
    """lm-eval's Hugging Face model with the log-likelihoods of options computed where options stand.

    The numbers are those of `HFLM`; what is saved is work. Options whose tokens are a beginning of another option's
    (all single-token options, above all) share one forward pass a document, and logits are computed for the
    options' positions only. What stands before a document's options is computed once, and so is what all documents of
    a batch begin with. Nothing is kept from one batch to the next: lm-eval's cache is keyed without the model.
    """

    @property
    def max_length(self) -> int:
        """Where prompts are cut: at what their examples count as cut, not at lm-eval's 2,048 where a config names no limit."""
        return positions(self.config)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's option, its tokens cut as those of training are."""
        asked = [request.args for request in requests]
        return self._loglikelihood_tokens([(pair, *split(self.tokenizer, *pair)) for pair in asked])

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return [(float(tokens.sum()), greedy) for tokens, greedy in self._by_token(requests)]

    def answer_tokens(self, examples: Sequence[Example]) -> list[list[float]]:
        """Log-likelihood of each token of the examples' right answers after their prompts, in nats."""
        pairs = [(example.prompt, example.completion) for example in examples]
        found = self._by_token([(pair, *split(self.tokenizer, *pair)) for pair in pairs])
        return [tokens.tolist() for tokens, _ in found]

    def _by_token(self, requests: list[Request]) -> list[tuple[torch.Tensor, bool]]:
        """Log-likelihood of each token of each request's option, and whether each is the most likely one there."""
        inputs = [tuple((context + option)[-(self.max_length + 1) :][:-1]) for _, context, option in requests]
        served_by = _covering(inputs)
        served: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(inputs):
            served.setdefault(served_by[row], []).append(index)
        # The last token before the options: logits are needed from there on.
        answered = {row: min(len(inputs[i]) - len(requests[i][2]) for i in at) for row, at in served.items()}
        # A document's options beside each other; the longest first: running out of memory shows at once.
        passes = sorted(served, key=lambda row: (-answered[row], row))
        results = [(torch.empty(0), False)] * len(requests)
        spoken = time.monotonic()
        for start in range(0, len(passes), self.batch_size):
            batch = passes[start : start + self.batch_size]
            logits = self._answer_logits(batch, [answered[row] for row in batch])
            for row, scores in zip(batch, logits, strict=True):
                for index in served[row]:
                    option = torch.tensor(requests[index][2], device=scores.device)
                    end = len(scores) - (len(row) - len(inputs[index]))
                    likelihoods = scores[end - len(option) : end]
                    chosen = likelihoods.gather(1, option.unsqueeze(1)).squeeze(1)
                    greedy = bool((likelihoods.argmax(dim=1) == option).all())
                    results[index] = (chosen.cpu(), greedy)
            if time.monotonic() - spoken > TOLD_EVERY:
                spoken = time.monotonic()
                print(f"evaluated {start + len(batch)}/{len(passes)} passes", file=sys.stderr, flush=True)
        return results

    @torch.inference_mode()
    def _answer_logits(self, rows: list[tuple[int, ...]], answered: list[int]) -> torch.Tensor:
        """Log-probabilities at the last positions of each row, from `answered` on: (rows, kept, vocabulary), float32."""
        kept = max(len(row) - place for row, place in zip(rows, answered, strict=True))
        beginnings = [row[:place] for row, place in zip(rows, answered, strict=True)]
        if len(set(beginnings)) == len(rows):
            # One row a document: what the documents themselves have in common, the instruction.
            beginnings = [os.path.commonprefix(beginnings)] * len(rows)  # type: ignore[list-item]
        # Between a cached beginning and a short tail stands padding, which a sliding window counts and a recurrence takes in.
        width = max(map(len, beginnings)) + max(
            len(row) - len(beginning) for row, beginning in zip(rows, beginnings, strict=True)
        )
        if len(rows) == 1 or not all(beginnings) or self._puts_tokens_in_front or width > window(self.model):
            beginnings = [()] * len(rows)
        tails = [row[len(beginning) :] for row, beginning in zip(rows, beginnings, strict=True)]
        batch = self._padded(tails)
        if any(beginnings):
            distinct = list(dict.fromkeys(beginnings))
            owner = torch.tensor([distinct.index(beginning) for beginning in beginnings], device=self.device)
            first = self._padded(distinct)
            cache = self.model(**first, logits_to_keep=1, use_cache=True).past_key_values
            cache.batch_select_indices(owner)
            batch["attention_mask"] = torch.cat(
                [first["attention_mask"][owner], batch["attention_mask"]], dim=1
            )
            batch["position_ids"] += first["attention_mask"].sum(1)[owner].unsqueeze(1)
            batch["past_key_values"] = cache
        logits = self.model(**batch, logits_to_keep=kept, use_cache=any(beginnings)).logits
        # Prompt tuning puts its virtual tokens in front, so count from the end.
        return torch.log_softmax(logits[:, -kept:].float(), dim=-1)

    def _padded(self, rows: list[tuple[int, ...]]) -> dict[str, Any]:
        batch = left_pad(rows, self.tokenizer.pad_token_id)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @property
    def _puts_tokens_in_front(self) -> bool:
        """Whether the method is prompt tuning or LLaMA-Adapter, which do not go with a cache made elsewhere."""
        config = getattr(self.model, "active_peft_config", None)
        return config is not None and (config.is_prompt_learning or config.is_adaption_prompt)


def _covering(rows: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each row the longest row that begins with it. In sorted order a row stands right before what it begins."""
    covering: dict[tuple[int, ...], tuple[int, ...]] = {}
    after: tuple[int, ...] = ()
    for row in sorted(set(rows), reverse=True):
        covering[row] = covering[after] if after[: len(row)] == row else row
        after = row
    return covering


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Any,
    settings: EvaluationSettings,
    task_name: str,
    examples: Sequence[Example],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Evaluate `model` on lm-eval task object `task`, whose documents are `examples`.

    Returns one row per document (document, position, target, answer, correct, loglikelihoods, prompt_hash; where text is
    generated also answer_tokens) and the record of the evaluation (documents, metrics, seconds, the first prompt's tokens).
    Raises `MolaError` where lm-eval asks something else than the examples.
    """
    model.eval()
    model.config.use_cache = True
    # lm-eval warns that it was handed a loaded model, which is the point.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    language_model = AnswerLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        add_bos_token=adds_bos(tokenizer),
        # Any other value makes HFLM move the model; it is where it should be.
        device=str(next(model.parameters()).device),
    )
    started = time.monotonic()
    with computed_in(model, settings.precision):
        outcome = evaluator.evaluate(
            language_model, {task_name: task}, limit=settings.documents, bootstrap_iters=0, log_samples=True
        )
        samples = outcome["samples"][task_name]
        if not samples:
            raise MolaError(f"task {task_name}: no document to evaluate")
        _compare(task_name, samples, examples)
        golds = golds_in_prompts(task, settings.documents)
        frame = pd.DataFrame(
            [
                _document(sample, examples[sample["doc_id"]], golds[sample["doc_id"]][0] if golds else None)
                for sample in samples
            ]
        )
        frame = frame.sort_values("position", ignore_index=True)
        if task.OUTPUT_TYPE == "generate_until":
            frame["answer_tokens"] = language_model.answer_tokens(examples)
    seconds = time.monotonic() - started
    frame = numbered(frame)
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in outcome["results"][task_name].items()
        if isinstance(value, int | float) and "stderr" not in key
    }
    prompt = _asked(samples[0])[0][0]
    return frame, {
        "documents": len(frame),
        "accuracy": float(frame["correct"].mean()),
        "chance": chance(examples, [len(each) for each in frame["loglikelihoods"]]),
        "metrics": metrics,
        "seconds": round(seconds, 3),
        "documents_per_second": round(len(frame) / seconds, 3),
        "first_prompt_tokens": language_model.tok_encode(prompt),
        "adds_bos": adds_bos(tokenizer),
    }


def _compare(task_name: str, samples: list[dict[str, Any]], examples: Sequence[Example]) -> None:
    """Raise `MolaError` unless lm-eval asked of each document what stands in the examples, and of no other."""
    if sorted(sample["doc_id"] for sample in samples) != list(range(len(examples))):
        raise MolaError(
            f"task {task_name}: lm-eval evaluated {len(samples)} documents, the examples are {len(examples)}; "
            "prepare them again with `mola examples`"
        )
    for sample in samples:
        example, asked = examples[sample["doc_id"]], _asked(sample)
        options = [(example.prompt, option) for option in example.options]
        # Where the options stand in the prompt (winogrande), or text is generated, the right one alone is an example.
        same = (
            (example.prompt, example.completion) in asked
            if len(options) == 1
            else asked == options
            if options
            else asked[0][0] == example.prompt
        )
        if not same or example.document != sample["doc_hash"]:
            raise MolaError(
                f"task {task_name}: lm-eval asks another question than row {sample['doc_id']} of the examples; prepare "
                "them again with `mola examples`"
            )


def _asked(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """(prompt, option) of each request of a document; of generation (prompt, how to generate)."""
    arguments = sample["arguments"]
    listed = arguments.values() if isinstance(arguments, dict) else arguments
    return [(one["arg_0"], one["arg_1"]) if isinstance(one, dict) else tuple(one) for one in listed]


def _document(sample: dict[str, Any], example: Example, gold: int | None = None) -> dict[str, Any]:
    """One row of the samples: what was asked, what was answered, whether it was right.

    The target is the right option's place where there are options, whatever lm-eval calls it (a label says where it
    stands only where it was answered rightly); `gold` is it where options stand in prompts.
    """
    responses = sample["filtered_resps"]
    if gold is None and len(example.options) > 1:
        gold = example.answer
    row = {
        "document": sample["doc_hash"],
        "position": int(sample["doc_id"]),
        "target": str(sample["target"] if gold is None else gold),
        "correct": int(sample["acc"]),
        "prompt_hash": sample["prompt_hash"],
    }
    if isinstance(responses[0], str):
        return row | {"answer": responses[0], "loglikelihoods": []}
    likelihoods = [float(response[0]) for response in responses]
    return row | {"answer": str(likelihoods.index(max(likelihoods))), "loglikelihoods": likelihoods}


@torch.inference_mode()
def check_adapter_acts(model: Any, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Raise `MolaError` where the adapter leaves the logits of a text as they are: then the base model would be evaluated."""
    model.eval()
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 256
    tokens = tokenizer(text, add_special_tokens=False).input_ids[: min(256, limit)]
    batch = {
        name: tensor.to(model.device) for name, tensor in left_pad([tokens], tokenizer.pad_token_id).items()
    }
    adapted = model(**batch, logits_to_keep=1).logits
    with model.disable_adapter():
        plain = model(**batch, logits_to_keep=1).logits
    if torch.equal(adapted[:, -1], plain[:, -1]):
        raise MolaError("adapter: it does not change the model's logits; it was not trained or not loaded")
