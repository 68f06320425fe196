"""Evaluation by itself: options that begin alike, documents that stand twice, and examples that are not what is asked."""

import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    JambaConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    MptConfig,
    RwkvConfig,
)

from mola_core.errors import MolaError
from mola_core.evaluation.harness import AnswerLM, evaluate
from mola_core.evaluation.likelihoods import of_samples
from mola_core.evaluation.unanswered import unanswered
from mola_core.models.attention import window
from mola_core.models.loading import UNLIMITED, positions
from mola_core.runs.prepare import prepare_examples
from mola_core.study.sections import EvaluationSettings
from mola_core.tasks import Example, load_task, render
from mola_core.tasks.examples import read_examples


@pytest.fixture
def prepared_bench(bench):
    runner = bench(tasks=["cola"], methods=["base"], seeds=[0])
    prepare_examples(runner.layout, "cola", lambda: runner.base.tokenizer)
    return runner


def test_an_option_that_begins_another_is_scored_at_its_own_place(prepared_bench):
    """` A`, ` A B` and ` A B C` share one pass: each is to be read where it ends, not where the longest does."""
    base = prepared_bench.base
    arguments = {"pretrained": base.model, "tokenizer": base.tokenizer, "batch_size": 4, "device": "cpu"}
    requests = [
        Instance("loglikelihood", {}, (context, option), index)
        for context in ("Question: one", "Question: and another")
        for index, option in enumerate((" yes", " yes indeed", " yes indeed so", " no"))
    ]
    ours = AnswerLM(**arguments).loglikelihood(requests)
    stock = HFLM(**arguments, logits_cache=False).loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert len({round(value, 3) for value, _ in ours}) == len(requests), "eight different numbers"


@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        (MistralConfig, {"sliding_window": 12}, 12),
        (MistralConfig, {"sliding_window": None}, sys.maxsize),
        (Lfm2Config, {"layer_types": ["conv", "full_attention"]}, 0),
        (MptConfig, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, 0),
        (
            JambaConfig,
            {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4},
            0,
        ),
    ],
)
def test_prompts_beyond_a_window_are_not_cached(prepared_bench, kind, settings, limit):
    """Padding behind a cached beginning would count as positions, and change what a convolution sees."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = kind(**sizes, num_key_value_heads=2, vocab_size=512, max_position_embeddings=128, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert window(model) == limit
    arguments = {
        "pretrained": model,
        "tokenizer": prepared_bench.base.tokenizer,
        "batch_size": 4,
        "device": "cpu",
    }
    requests = [
        Instance("loglikelihood", {}, (f"Is this one of all those that were seen? {words}:", option), index)
        for index, (words, option) in enumerate(
            [("no", " yes"), ("a long one, as the beginning of it says", " no"), ("or", " never at all, no")]
        )
    ]
    ours = AnswerLM(**arguments).loglikelihood(requests)
    stock = HFLM(**arguments | {"batch_size": 1}, logits_cache=False).loglikelihood(
        requests, disable_tqdm=True
    )
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-3)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=512), UNLIMITED),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=512), 64),
    ],
    ids=["bloom", "gpt2"],
)
def test_prompts_are_cut_where_examples_count_them_as_cut(prepared_bench, tmp_path, config, limit):
    """lm-eval cuts at 2,048 tokens where a config names no limit, and says nothing."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = prepared_bench.base.tokenizer
    prompt = "Is this a question? " * 240
    arguments = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 2, "device": "cpu"}
    ours = AnswerLM(**arguments)
    assert ours.max_length == positions(tmp_path) == limit
    [(found, _)] = ours.loglikelihood([Instance("loglikelihood", {}, (prompt, " yes"), 0)])
    answer = tokenizer(" yes", add_special_tokens=False).input_ids
    tokens = tokenizer(prompt.rstrip(), add_special_tokens=False).input_ids
    blank = tokenizer(" ", add_special_tokens=False).input_ids
    tokens = [*tokens, *blank, *answer][-limit - 1 :]
    assert len(tokens) == 65 or len(tokens) > 2100
    with torch.inference_mode():
        by_token = model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    expected = sum(
        by_token[place - 1, tokens[place]].item()
        for place in range(len(tokens) - len(blank) - len(answer), len(tokens))
    )
    assert found == pytest.approx(expected, abs=1e-3)
    if limit == UNLIMITED:
        settings = {"until": ["?"], "max_gen_toks": 2}
        assert len(ours.generate_until([Instance("generate_until", {}, (prompt, settings), 0)], True)) == 1


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4),
        # Its config names no kinds of layers.
        RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, attention_hidden_size=32),
    ],
    ids=["mamba", "rwkv"],
)
def test_a_model_without_attention_has_no_window(config):
    assert window(AutoModelForCausalLM.from_config(config)) == 0


def test_a_diverged_training_is_right_where_the_first_option_is(prepared_bench):
    """Of a task with its options in the prompt an example has one, whose place says nothing."""
    tokenizer = prepared_bench.base.tokenizer
    examples = [Example(f"d{place}", f"prompt {place}", " waved.", [" waved."], 0) for place in range(4)]
    frame, record = unanswered(examples, tokenizer, golds=[(0, 2), (1, 2), (1, 2), (2, 3)])
    assert frame["correct"].tolist() == [1, 0, 0, 0] and record["accuracy"] == 0.25
    assert frame["target"].tolist() == ["0", "1", "1", "2"]
    assert [len(values) for values in frame["loglikelihoods"]] == [2, 2, 2, 3]
    likelihood, _ = of_samples(frame)
    assert list(likelihood) == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1 / 3])


def scored(runner, examples):
    task = load_task("cola", "choice", runner.layout.data("cola"))
    settings = EvaluationSettings(batch_size=4)
    with torch.inference_mode():
        return evaluate(runner.base.model, runner.base.tokenizer, task, settings, "cola", examples)


def test_options_in_the_prompts_have_a_likelihood(prepared_bench, tmp_path):
    """WinoGrande: lm-eval's target is the text behind the gap, alike for both options."""
    rows = [
        {
            "sentence": f"The {one} met the {two} since _ was late on day {day}.",
            "option1": one,
            "option2": two,
            "answer": right,
        }
        for day, (one, two, right) in enumerate(
            [("cat", "dog", "1"), ("bus", "car", "2"), ("fox", "hen", "2")]
        )
    ]
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    task = load_task("winogrande", "choice", tmp_path)
    base, settings = prepared_bench.base, EvaluationSettings(batch_size=4)
    with torch.inference_mode():
        frame, record = evaluate(
            base.model, base.tokenizer, task, settings, "winogrande", render(task, "validation")
        )
    assert frame["target"].tolist() == ["0", "1", "1"]
    likelihood, _ = of_samples(frame)
    right = [target == answer for target, answer in zip(frame["target"], frame["answer"], strict=True)]
    assert [share > 0.5 for share in likelihood] == right == frame["correct"].astype(bool).tolist()


def test_a_document_that_stands_twice_is_told_apart(prepared_bench, monkeypatch):
    from mola_core.evaluation import harness

    plain = harness._document
    monkeypatch.setattr(
        harness,
        "_document",
        lambda sample, *known: (
            plain(sample, *known) | ({"document": "same"} if sample["doc_id"] in (1, 3, 4) else {})
        ),
    )
    examples = read_examples(prepared_bench.layout.examples("cola"), "evaluation")
    frame, _ = scored(prepared_bench, examples)
    assert frame["document"].is_unique
    assert frame.loc[[1, 3, 4], "document"].tolist() == ["same", "same-1", "same-2"]


def test_the_target_is_the_right_options_place_whatever_it_is_called():
    """A label that no document was answered rightly with would leave a cell, and so its task, without likelihoods."""
    from mola_core.evaluation.harness import _document

    rows = []
    for place, label in enumerate(("yes", "no", "maybe")):
        example = Example(f"d{place}", "Is it?", f" {label}", [" yes", " no", " maybe"], place)
        sample = {"doc_hash": f"d{place}", "doc_id": place, "target": label, "acc": 0, "prompt_hash": "p"}
        answers = [(-2.0, False)] * 3
        answers[(place + 1) % 3] = (-1.0, True)
        rows.append(_document(sample | {"filtered_resps": answers}, example))
    frame = pd.DataFrame(rows)
    assert frame["target"].tolist() == ["0", "1", "2"]
    likelihood, _ = of_samples(frame)
    assert list(likelihood) == pytest.approx([1 / (2 + np.e)] * 3)
    one = Example("d", "Which?", " waved.", [" waved."], 0)
    sample = {"doc_hash": "d", "doc_id": 0, "target": 1, "acc": 1, "prompt_hash": "p"}
    assert _document(sample | {"filtered_resps": [(-2.0, False), (-1.0, True)]}, one)["target"] == "1"


def test_questions_that_are_not_the_examples_are_refused(prepared_bench):
    import dataclasses

    examples = read_examples(prepared_bench.layout.examples("cola"), "evaluation")
    scored(prepared_bench, examples)
    other = [*examples[:-1], dataclasses.replace(examples[-1], prompt=examples[-1].prompt + " ")]
    with pytest.raises(MolaError, match=f"another question than row {len(examples) - 1}"):
        scored(prepared_bench, other)
    swapped = [*examples[:-1], dataclasses.replace(examples[-1], options=examples[-1].options[::-1])]
    with pytest.raises(MolaError, match="another question"):
        scored(prepared_bench, swapped)
    with pytest.raises(MolaError, match="the examples are"):
        scored(prepared_bench, examples[:-1])


def test_generated_answers_have_the_probabilities_of_the_right_answers_tokens(bench):
    """By hand: each example alone through the bare model, a token a byte."""
    from mola_core.analysis.score_writer import likelihood_columns

    runner = bench(
        tasks=["cola"], methods=["base"], seeds=[0], protocol="generate", evaluation={"documents": 5}
    )
    cell = runner.study.cell("cola", "base", 0)
    runner.run(cell)
    samples = pq.read_table(runner.layout.cell(cell) / "samples.parquet")
    tokenizer, model = runner.base.tokenizer, runner.base.model
    examples = read_examples(runner.layout.examples("cola"), "evaluation", 5)
    found = {name: column.to_pylist() for name, column in likelihood_columns(samples).items()}
    for place, example in enumerate(examples):
        prompt = example.prompt.rstrip()  # a blank at its end belongs to the answer
        answer = tokenizer(example.prompt[len(prompt) :] + example.completion).input_ids
        tokens = torch.tensor([tokenizer(prompt).input_ids + answer])
        with torch.inference_mode():
            by_token = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
        nats = by_token[-len(answer) :, 0]
        assert len(answer) > 5 and samples["answer_tokens"][place].as_py() == pytest.approx(
            nats.tolist(), abs=1e-4
        )
        assert found["likelihood"][place] == pytest.approx(nats.exp().mean().item(), rel=1e-4)
        assert found["log_likelihood"][place] == pytest.approx(nats.sum().item(), rel=1e-4)
