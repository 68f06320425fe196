"""Rows that are no fair question: right or refused where examples are made, in one line with task, row and fix."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from task_rows import write_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mola_core.errors import MolaError
from mola_core.evaluation.harness import AnswerLM
from mola_core.models.tokens import encode, split
from mola_core.study.sections import DirectoryData
from mola_core.tasks import Example, load_task, splits_of, unfit
from mola_core.tasks.check import chance, check_answers, check_options, content
from mola_core.tasks.examples import read_examples, remarks, write_examples
from mola_core.tasks.loading import _answer
from mola_core.tasks.rows import prepare_task
from mola_core.training.batches import Collator, Packer


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return PreTrainedTokenizerFast.from_pretrained(tiny)


def merging(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and these merges, which look beyond blanks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["</s>", *alphabet, *("".join(pair) for pair in merges)]
    plain = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, list(merges)))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="</s>")


def row(prompt="Is it?\nAnswer:", options=(" yes", " no"), answer=0, **more):
    right = None if answer is None else options[answer]
    return {"prompt": prompt, "options": list(options), "answer": answer, "completion": right} | more


def test_an_option_that_the_prompt_swallows_is_refused():
    """ ": A" as one token leaves no token to the option A: its likelihood would be 1 in every document."""
    swallowing = merging((":", "Ġ"), (":Ġ", "A"))
    assert split(swallowing, "Answer:", " A")[1] == []
    with pytest.raises(MolaError, match=r"task t: row 1 of test: option ' A' has no token of its own"):
        check_options("t", "test", [row(options=(" B", " C")), row(options=(" B", " A"))], swallowing)
    with pytest.raises(ValueError, match="no token of its own"):
        encode(swallowing, "Answer:", " A", 64)


def test_options_that_begin_inside_the_prompts_last_token_are_counted():
    swallowing = merging((":", "Ġ"), (":Ġ", "A"))
    assert check_options("t", "test", [row(options=(" Apple", " Berry"))] * 3, swallowing)["merged"] == 3
    assert check_options("t", "test", [row(options=(" Cat", " Berry"))] * 3, merging())["merged"] == 0


@pytest.mark.parametrize(
    ("options", "right", "words"),
    [
        ((" a", " b", " a"), 0, "options 0 and 2 are the same text"),
        ((" a", " b", " a"), 2, "options 2 and 0 are the same text"),
        ((" a", " b", " a"), 1, None),
    ],
)
def test_a_right_option_that_another_equals_is_refused(tokenizer, options, right, words):
    rows = [row(options=options, answer=right)]
    if words is None:
        assert check_options("t", "test", rows, tokenizer)["twins"] == 0
    else:
        with pytest.raises(MolaError, match=words):
            check_options("t", "test", rows, tokenizer)


def test_a_text_to_be_generated_is_checked_as_an_option_is(tokenizer):
    generated = row(options=(" yes",)) | {"options": [], "answer": None}
    assert check_options("t", "test", [generated], tokenizer) == {"merged": 0, "twins": 0}
    with pytest.raises(MolaError, match="option '' has no token of its own"):
        check_options("t", "test", [generated | {"completion": ""}], tokenizer)


def test_few_equal_options_of_a_benchmark_are_counted(tokenizer):
    twin = row(options=(" a", " a", " a"))  # counted once
    rows = [row(prompt=f"{number}?") for number in range(99)]
    assert check_options("t", "test", [*rows, twin], tokenizer) == {"merged": 0, "twins": 1}
    with pytest.raises(MolaError, match="row 99 of test: .* as in 2 of 101 documents"):
        check_options("t", "test", [*rows, twin, twin], tokenizer)


def test_options_with_the_same_tokens_are_refused():
    class Unknowing(dict):
        """Knows lower-case letters; all else is one token."""

        bos_token_id, eos_token_id = None, 0

        def __call__(self, text, add_special_tokens=True):
            self.input_ids = [ord(letter) if letter in "abcdefghijklmnopqrstuvwxyz" else 1 for letter in text]
            return self

    with pytest.raises(MolaError, match="options 0 and 1 are the same tokens"):
        check_options("t", "test", [row(options=(" é", " ü"))], Unknowing())


@pytest.mark.parametrize(
    ("gold", "index"),
    [
        (1, 1),
        (np.int64(1), 1),
        (np.uint8(2), 2),
        (torch.tensor(1), 1),
        ("b", 1),
        ([2], 2),
        ([np.int32(0)], 0),
    ],
)
def test_golds_of_any_integer_type_are_read(gold, index):
    assert _answer(gold, ["a", "b", "c"], "row") == index


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        (True, "answer True, which names no option"),
        (np.bool_(False), "names no option"),
        ([0, 1], "2 right answers of 3 options"),
        ([0, 1, 2], "3 right answers of 3 options"),
        ([], "no answer among its 3 options"),
        (["a"], "no answer among its 3 options"),
        (3, "no answer among its 3 options"),
        (-1, "no answer among its 3 options"),
        (1.0, "no answer among its 3 options"),
        (None, "no answer among its 3 options"),
        ("A", "no answer among its 3 options"),
    ],
)
def test_other_golds_are_refused(gold, words):
    with pytest.raises(MolaError, match=words):
        _answer(gold, ["a", "b", "c"], "row")


def test_an_answer_that_stands_twice_among_the_options_is_refused():
    with pytest.raises(MolaError, match="'a' more than once"):
        _answer("a", ["a", "b", "a"], "row")


ARC = {"id": "a1", "question": "What melts?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}}


def arc(question, answer, texts=("ice", "fire")):
    labels = [chr(65 + place) for place in range(len(texts))]
    choices = {"text": list(texts), "label": labels}
    return ARC | {"question": question, "answerKey": labels[answer], "choices": choices}


def prepared(tmp_path: Path, train, test, task="arc_easy", folder="ai2_arc/ARC-Easy") -> Path:
    for split_name, rows in (("train", train), ("test", test), ("validation", test[:1])):
        write_split(tmp_path / "root", folder, split_name, rows)
    prepare_task(task, DirectoryData(source="directory", root=str(tmp_path / "root")), tmp_path / "rows")
    return tmp_path / "rows"


def examples(tmp_path, tokenizer, train, test, **options):
    rows = prepared(tmp_path, train, test)
    return write_examples(
        "arc_easy", "choice", rows, tmp_path / "examples", tokenizer, 64, "by a test", **options
    )


@pytest.mark.parametrize(
    ("texts", "answers", "said"),
    [
        (("1", "2", "3"), [0], "row 0 of test has the answer 1 and the options 1, 2, 3"),
        # That 0.5 is a text says that 1 is one too.
        (("1", "2", "0.5"), [2, 0], "row 1 of test has the answer 1 and the options 1, 2, 0.5"),
        (("1", "2", "0.5"), [0, 2], "row 0 of test has the answer 1 and the options 1, 2, 0.5"),
    ],
)
def test_a_number_that_is_an_option_and_counts_another_is_refused(
    tmp_path, monkeypatch, texts, answers, said
):
    """lm-eval makes a number of a template's digits: the answer "1" of the options 1, 2, 3 is then the second."""
    from mola_core.tasks import loading

    rows = [arc(f"How many of {place}?", answer, texts) for place, answer in enumerate(answers)]
    folder = prepared(tmp_path, rows, rows)
    plain = loading.load_yaml

    def changed(file, **options):
        return plain(file, **options) | {"doc_to_target": "{{choices.text[choices.label.index(answerKey)]}}"}

    monkeypatch.setattr(loading, "load_yaml", changed)
    task = load_task("arc_easy", "choice", folder)
    with pytest.raises(MolaError, match=said):
        loading.make_examples(task, "test", None)


def test_text_in_one_row_and_a_place_in_another_are_refused():
    from types import SimpleNamespace

    from mola_core.tasks.loading import _check_reading

    rows = [("0.5", ["1", "2", "0.5"]), (1, ["7", "8", "9"]), (1, ["1", "2", "3"])]
    task = SimpleNamespace(
        config=SimpleNamespace(doc_to_target="{{answer}}!"),
        features=[],
        multiple_input=0,
        task_name="mixed",
        doc_to_target=lambda row: row[0],
        doc_to_choice=lambda row: row[1],
    )
    with pytest.raises(MolaError, match="row 2 of test has the answer 1 and the options 1, 2, 3"):
        _check_reading(task, rows, "test")
    _check_reading(task, rows[1:], "test")  # places throughout


def test_numbers_among_options_do_not_forbid_answers_by_number(tmp_path, tokenizer):
    """Options of sums hold digits; a template that asks for a place gives one."""
    rows = [arc("1+1?", 0, ("2", "1", "0")), arc("2+5?", 1, ("0", "7", "1"))]
    asked = [arc("0+2?", 0, ("2", "1", "0")), arc("3+4?", 1, ("0", "7", "1"))]
    record = examples(tmp_path, tokenizer, rows, asked)
    assert record["parts"]["evaluation"]["documents"] == 2
    assert [each.completion for each in read_examples(tmp_path / "examples", "train")] == [" 2", " 7"]


def test_what_lm_eval_counts_as_right_is_compared(tmp_path, monkeypatch):
    from mola_core.tasks import loading

    folder = prepared(tmp_path, [arc("a?", 0)], [arc("b?", 0)])
    task = load_task("arc_easy", "choice", folder)
    monkeypatch.setattr(task, "process_results", lambda doc, results: {"acc": 1.0})
    with pytest.raises(MolaError, match="row 0 to evaluate on: lm-eval counts option 1 as right"):
        loading.make_examples(task, "test", None)
    monkeypatch.setattr(task, "process_results", lambda doc, results: {"acc": 0.0})
    with pytest.raises(MolaError, match="row 0 to evaluate on: lm-eval counts option 0 as wrong"):
        loading.make_examples(task, "test", None)


def test_options_that_are_no_text_are_refused(tmp_path, monkeypatch):
    """`doc_to_choice: [no, yes]` is [False, True] in YAML 1.1, which lm-eval reads."""
    from mola_core.tasks import loading

    folder = prepared(tmp_path, [arc("a?", 0)], [arc("b?", 0)])
    task = load_task("arc_easy", "choice", folder)
    monkeypatch.setattr(task, "doc_to_choice", lambda doc, *_: [False, True])
    with pytest.raises(MolaError, match=r"row 0 of test has options that are no texts .*in quotes"):
        loading.make_examples(task, "test", None)


def test_an_empty_cell_is_no_word_of_a_prompt(tmp_path):
    with pytest.raises(MolaError, match="task arc_easy: row 1 of train has an empty cell"):
        prepared(tmp_path, [arc("a?", 0), arc(None, 1)], [arc("b?", 0)])


def test_a_document_with_one_option_is_refused(tmp_path):
    """Every method would be right on it."""
    with pytest.raises(MolaError, match="row 1 of test has 1 options, so nothing can be chosen"):
        prepared(tmp_path, [arc("a?", 0)], [arc("b?", 0), arc("c?", 0, ("ice",))])


@pytest.mark.parametrize(
    ("length", "words"), [(60, "row 0 of validation: max_length 48 leaves no room"), (30, None)]
)
def test_a_wrong_option_beyond_the_models_positions_is_refused(tmp_path, tokenizer, length, words):
    """It would be scored without its beginning, and without the prompt."""
    rows = [arc("a?", 0, ("ice", "x " * length)), arc("b?", 1)]
    if words:
        with pytest.raises(MolaError, match=words):
            examples(tmp_path, tokenizer, [arc("c?", 1), arc("d?", 0)], rows, positions=48)
    else:
        record = examples(tmp_path, tokenizer, [arc("c?", 1), arc("d?", 0)], rows, positions=66)
        assert record["parts"]["evaluation"]["cut"] == 1


def test_an_answer_that_never_changes_is_refused(tokenizer):
    classes = [row(prompt=f"{number}?", options=(" no", " yes"), answer=1) for number in range(12)]
    with pytest.raises(MolaError, match="' yes' is the right answer of all 12 documents of train"):
        check_answers("t", "train", classes)
    check_answers("t", "train", [*classes, row(options=(" no", " yes"), answer=0)])
    check_answers("t", "train", classes[:5])
    shown = [
        row(prompt=f"Pick: x{number} or y{number}?", options=(f" x{number}", f" y{number}"))
        for number in range(12)
    ]
    with pytest.raises(MolaError, match="option 0 of the prompt"):
        check_answers("t", "train", shown)
    unseen = [each | {"prompt": "Which?"} for each in shown]
    check_answers("t", "train", unseen)


def test_ten_documents_are_enough_to_see_that_an_answer_never_changes():
    classes = [row(prompt=f"{number}?", options=(" no", " yes"), answer=1) for number in range(10)]
    with pytest.raises(MolaError, match="all 10 documents"):
        check_answers("t", "train", classes)
    check_answers("t", "train", classes[:9])


def test_an_answer_in_one_place_is_refused_where_the_prompt_shows_all_options():
    def shown(prompt, answer=0):
        pairs = [(f" x{number}", f" y{number}") for number in range(12)]
        return [
            row(prompt=prompt.format(*map(str.strip, pair)), options=pair, answer=answer and place % 2)
            for place, pair in enumerate(pairs)
        ]

    with pytest.raises(MolaError, match="option 0 of the prompt"):
        check_answers("t", "train", shown("{0}\n{1}\nWhich?"))
    check_answers("t", "train", shown("{0} or {1}?", answer=1))  # now the one, now the other
    check_answers("t", "train", shown("{0} or what?"))
    generated = [row(options=(f"answer {number}",)) | {"options": [], "answer": None} for number in range(12)]
    check_answers("t", "train", generated)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (row(options=(" a", " b")), row(options=(" b", " a"), answer=1), True),
        (row(prompt="Q  x\nAnswer:"), row(prompt="Q x\nAnswer:"), True),
        (
            row(prompt="Q?\nOptions: (A) one (B) two\nAnswer:", options=(" A", " B")),
            row(prompt="Q?\nOptions: (A) two (B) one\nAnswer:", options=(" A", " B"), answer=1),
            True,
        ),
        (
            row(prompt="Q?\nA. one\nB. two\nAnswer:", options=(" A", " B")),
            row(prompt="Q?\nA. two\nB. one\nAnswer:", options=(" A", " B")),
            True,
        ),
        (
            row(prompt="Q?\nA. one\nB. two\nAnswer:", options=(" A", " B")),
            row(prompt="Q?\nA. one\nB. three\nAnswer:", options=(" A", " B")),
            False,
        ),
        (row(prompt="the dog bit the man"), row(prompt="the man bit the dog"), False),
        (
            row(prompt="Q?\nA. one\nB. two\nAnswer:", options=(" A", " B")),
            row(prompt="R?\nA. one\nB. two\nAnswer:", options=(" A", " B")),
            False,
        ),
        (
            row(prompt="Q?\nA. one\nB. two\nWhich is hot?", options=(" A", " B")),
            row(prompt="Q?\nA. one\nB. two\nWhich is cold?", options=(" A", " B")),
            False,
        ),
        (
            row(prompt="Q ?\nA. one  x\nB. two\nWhich  one?", options=(" A", " B")),
            row(prompt="Q  ?\nA. two\nB. one x\nWhich one?", options=(" A", " B")),
            True,
        ),
        (
            row(prompt="Q?\nA. one\nAnswer:", options=(" A", " B")),
            row(prompt="Q?\nB. one\nAnswer:", options=(" A", " B")),
            False,
        ),
        (
            row(prompt="c) one\nd) two\nAnswer:", options=(" cat", " dog")),
            row(prompt="c) two\nd) one\nAnswer:", options=(" cat", " dog")),
            False,
        ),
        (row(options=(" a", " b")), row(options=("a", "b")), True),
        (row(options=(" a",)) | {"options": []}, row(options=(" b",)) | {"options": []}, False),
        (row(options=(" a",)) | {"options": []}, row(options=("a",)) | {"options": []}, True),
        (row(options=(" a", " b")), row(options=(" a", " c")), False),
    ],
)
def test_the_same_question_is_known_by_its_words(one, other, same):
    assert (content(one) == content(other)) is same


def test_shared_documents_are_counted_and_can_be_left_out(tmp_path, tokenizer, capsys):
    train = [arc(f"q{n}?", n % 2) for n in range(20)]
    test = [arc("q3?", 0, ("fire", "ice")), arc("other?", 1)]
    record = examples(tmp_path, tokenizer, train, test)
    assert record["shared"]["train and evaluation"] == 1
    assert "task arc_easy: 1 documents stand in train and evaluation" in capsys.readouterr().err
    assert len(read_examples(tmp_path / "examples", "train")) == 20
    dropped = examples(tmp_path / "again", tokenizer, train, test, drop_shared=True)
    kept = read_examples(tmp_path / "again" / "examples", "train")
    assert dropped["dropped"] == 1 and len(kept) == 19
    assert not [each for each in kept if "q3?" in each.prompt]
    assert "1 of them were left out of training" in remarks(dropped)


def test_a_split_under_two_names_is_refused(tmp_path, tokenizer):
    """Labels by coin would be learnt to 100 %."""
    rows = [arc(f"q{n}?", n % 2) for n in range(8)]
    others = [arc(f"other {n}?", n % 2) for n in range(7)]
    with pytest.raises(MolaError, match="task arc_easy: 8 of 8 documents to evaluate on stand in train too"):
        examples(tmp_path, tokenizer, rows, rows[::-1])
    with pytest.raises(MolaError, match="8 of 15 documents"):
        examples(tmp_path, tokenizer, rows, rows + others)
    assert examples(tmp_path, tokenizer, rows[1:], rows + others)["shared"]["train and evaluation"] == 7
    with pytest.raises(MolaError, match="every training document is asked in evaluation too"):
        examples(tmp_path, tokenizer, rows, rows, drop_shared=True)


def test_prompts_beyond_the_models_positions_are_counted(tmp_path, tokenizer):
    rows = [arc("word " * 3, 0), arc("word " * 30, 1)]
    record = examples(tmp_path, tokenizer, [arc("a?", 0), arc("b?", 1)], rows, positions=48)
    assert record["parts"]["evaluation"]["cut"] == 1
    assert any("1 of 2 prompts of evaluation lose their beginning" in line for line in remarks(record))


def example(options=(" a", " b"), answer=0):
    return Example("d", "p", options[answer], list(options), answer)


def test_chance_is_by_what_the_options_are():
    classes = [example(answer=place) for place in (0, 0, 0, 1)]
    assert chance(classes, [2] * 4) == {"of": "class", "level": 0.75}
    differing = [example((f" x{n}", f" y{n}")) for n in range(4)]
    assert chance(differing, [2] * 4) == {"of": "options", "level": 0.5}
    assert chance(differing, [2, 4, 4, 4])["level"] == pytest.approx((0.5 + 0.75) / 4)
    in_prompt = [Example("d", "p", " waved.", [" waved."], 0)] * 4  # winogrande: one option, two asked
    assert chance(in_prompt, [2] * 4) == {"of": "options", "level": 0.5}
    generated = [Example("d", "p", text, [], None) for text in ("A.", "A.", "B.")]
    assert chance(generated, [0] * 3)["level"] == pytest.approx(2 / 3)


GOOD = {
    "output_type": "multiple_choice",
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_choice": "choices",
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"test_split": "test"}, None),
        ({"validation_split": "train"}, "evaluated on 'train', which it is trained on"),
        ({"test_split": "train"}, "evaluated on 'train'"),
        ({"validation_split": "train[:10%]"}, "which it is trained on"),
        ({"validation_split": "train[:10%]", "training_split": "train[10%:]"}, None),
        ({"validation_split": None}, "no split to evaluate on"),
        ({"training_split": None}, "no training_split"),
        ({"output_type": "generate_until"}, "generate_until, not a plain multiple_choice"),
        ({"process_results": "utils.score"}, "process_results"),
        ({"filter_list": [{"name": "x"}]}, "filter_list"),
        ({"doc_to_image": "image"}, "images"),
        ({"doc_to_choice": None}, "no doc_to_choice"),
        ({"metric_list": [{"metric": "exact_match"}]}, "scored by exact_match, not by the option"),
        ({"metric_list": [{"metric": "mcc"}]}, None),
        ({"metric_list": [{"metric": "acc"}, {"metric": "exact_match"}]}, None),
    ],
)
def test_tasks_that_cannot_be_trained_and_compared_are_told_why(changes, reason):
    found = unfit(GOOD | changes)
    assert (found is None) if reason is None else (reason in found)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("gpqa_main_n_shot", "which it is trained on"),
        ("french_bench_hellaswag", "which it is trained on"),
        ("webqs", "not by the option"),
        ("mutual", "process_results"),
    ],
)
def test_lm_evals_own_tasks_of_these_kinds_are_refused(task, words, tmp_path):
    with pytest.raises(MolaError, match=f"task {task}: .*{words}"):
        load_task(task, "choice", tmp_path)


def test_a_validation_split_that_is_another_is_none(monkeypatch):
    from mola_core import tasks

    for validation, known in (("test", False), ("train", False), ("validation", True)):
        config = GOOD | {"validation_split": validation, "test_split": "test"}
        monkeypatch.setattr(tasks, "task_config", lambda name, config=config: config)
        assert ("validation" in splits_of("foreign")) is known


PROMPTS = ["", " ", "\n\n", "Question: one", "Question: one \n", "<s>already begun", "é:", "a" * 50]


@pytest.mark.parametrize("adds", [False, True], ids=["no BOS", "BOS"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_training_and_evaluation_cut_the_same_tokens_as_lm_eval(tiny, adds, prompt):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny)
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    model = AutoModelForCausalLM.from_pretrained(tiny)
    asked = {}

    class Recording(AnswerLM):
        def _loglikelihood_tokens(self, requests, *_, **__):
            asked["ours"] = requests
            return super()._loglikelihood_tokens(requests)

    class Stock(HFLM):
        def _loglikelihood_tokens(self, requests, *_, **__):
            asked["stock"] = requests
            return [(0.0, False)] * len(requests)

    options = {"pretrained": model, "tokenizer": tokenizer, "device": "cpu", "add_bos_token": adds}
    requests = [Instance("loglikelihood", {}, (prompt, option), 0) for option in (" yes", " no", "<s>x")]
    for kind in (Recording, Stock):
        kind(**options).loglikelihood(requests)
    for (pair, context, option), (_, stock_context, stock_option) in zip(
        asked["ours"], asked["stock"], strict=True
    ):
        # Stock lm-eval stops where a prompt of blanks leaves no token at all; it gets the token of an empty one.
        assert (context, option) == (stock_context or [tokenizer.bos_token_id], stock_option)
        trained = encode(tokenizer, *pair, 512)
        assert trained.tokens == context + option
        assert trained.prompt_length == len(context)


@pytest.mark.parametrize("prompts", [("", ""), ("", "Question: one"), (" ", "")])
def test_both_collators_train_the_same_answers_after_an_empty_prompt(tiny, prompts):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny)
    documents = [encode(tokenizer, prompt, f" word{place} yes", 64) for place, prompt in enumerate(prompts)]
    answers = [token for document in documents for token in document.tokens[document.prompt_length :]]
    plain = Collator(tokenizer.pad_token_id, "answer")(documents)
    assert plain["labels"][plain["labels"] != -100].tolist() == answers
    assert Packer()(documents)["labels"][0].tolist() == answers
