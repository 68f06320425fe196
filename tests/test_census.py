"""lm-eval's tasks that a study can name: the census, and what this project makes of forty and more against lm-eval's objects."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from task_rows import write_split

from mola_core.cli import main
from mola_core.study.sections import DirectoryData
from mola_core.tasks import (
    SPLIT_KEYS,
    dataset_of,
    evaluation_split,
    load_task,
    render,
    task_config,
    task_file,
)
from mola_core.tasks.rows import prepare_task


def pairs(first: str, second: str, labels: int, **more: Any):
    return lambda n: (
        {first: f"It rained {n} days.", second: f"It was dry on day {n}.", "label": n % labels} | more
    )


def arc(n: int) -> dict[str, Any]:
    choices = {"text": [f"ice {n}", f"fire {n}", "stone"], "label": ["A", "B", "C"]}
    return {
        "id": f"q{n}",
        "question": f"What melts on day {n}?",
        "choices": choices,
        "answerKey": "ABC"[n % 3],
    }


def story(n: int) -> dict[str, Any]:
    sentences = {f"input_sentence_{place}": f"Sentence {place} of {n}." for place in range(1, 5)}
    endings = {"sentence_quiz1": f"It ends {n}.", "sentence_quiz2": f"It goes on {n}."}
    return {"story_id": str(n), **sentences, **endings, "answer_right_ending": n % 2 + 1}


def winogrande(n: int) -> dict[str, Any]:
    return {
        "sentence": f"Ann met Bea, so _ waved {n}.",
        "option1": "Ann",
        "option2": "Bea",
        "answer": "12"[n % 2],
    }


def swag(n: int) -> dict[str, Any]:
    endings = {f"ending{place}": f"does {place} of {n}." for place in range(4)}
    return {"startphrase": f"She {n}", "sent1": f"She sees {n}.", "sent2": "She", **endings, "label": n % 4}


def hellaswag(n: int) -> dict[str, Any]:
    endings = [f"ends {place} of {n}." for place in range(4)]
    context = {
        "ctx_a": f"A man [substeps] walks {n}.",
        "ctx_b": "he then",
        "ctx": f"A man walks {n}. he then",
    }
    return {"activity_label": "Walking", **context, "endings": endings, "label": str(n % 4)}


def sciq(n: int) -> dict[str, Any]:
    wrong = {f"distractor{place}": f"wrong {place} {n}" for place in (1, 2, 3)}
    return {"question": f"What is {n}?", "correct_answer": f"right {n}", "support": "A text.", **wrong}


def copa(n: int) -> dict[str, Any]:
    question = ("cause", "effect")[n % 2]
    return {
        "premise": f"It rained {n}.",
        "choice1": "It was wet.",
        "choice2": "It was dry.",
        "question": question,
        "label": n % 2,
    }


XNLI = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
STORIES = ("ar", "en", "es", "eu", "hi", "id", "my", "ru", "sw", "te", "zh")
MADE = {
    **dict.fromkeys(("arc_easy", "arc_challenge"), arc),
    **{f"xnli_{language}": pairs("premise", "hypothesis", 3) for language in XNLI},
    **{f"xstorycloze_{language}": story for language in STORIES},
    **{f"paws_{language}": pairs("sentence1", "sentence2", 2) for language in ("de", "en", "es", "fr", "ja", "ko", "zh")},
    **dict.fromkeys(("mnli", "mnli_mismatch", "cb"), pairs("premise", "hypothesis", 3)),
    "sglue_rte": pairs("premise", "hypothesis", 2),
    "wnli": pairs("sentence1", "sentence2", 2),
    "qnli": pairs("question", "sentence", 2),
    "qqp": pairs("question1", "question2", 2),
    "boolq": pairs("passage", "question", 2),
    "sst2": lambda n: {"sentence": f"a fine film {n} ", "label": n % 2},
    "wic": pairs("sentence1", "sentence2", 2, word="It", start1=0, end1=2, start2=0, end2=2),
    "copa": copa,
    "winogrande": winogrande,
    "swag": swag,
    "hellaswag": hellaswag,
    "sciq": sciq,
    "piqa": lambda n: {"goal": f"Open {n}.", "sol1": f"pull {n}", "sol2": f"push {n}", "label": n % 2},
    "social_iqa": lambda n: {
        "context": f"Ann left {n}.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": str(n % 3 + 1),
    },
    "anli_r1": lambda n: {"uid": str(n), "premise": f"It rained {n}.", "hypothesis": "It was wet.", "label": n % 3},
}  # fmt: skip


def test_there_are_forty():
    assert len(MADE) >= 40


@pytest.mark.parametrize("task", MADE)
def test_prompts_options_and_golds_are_lm_evals_own(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [MADE[task](n) for n in range(6)]
    config = task_config(task)
    names = {config[key] for key in SPLIT_KEYS.values() if config.get(key)}
    for split in names:
        write_split(tmp_path / "root", dataset_of(task), split, rows)
    prepare_task(task, DirectoryData(source="directory", root=str(tmp_path / "root")), tmp_path / "rows")
    ours = load_task(task, "choice", tmp_path / "rows")
    table = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(dict.fromkeys(names, table))
    )
    stock = ConfigurableTask(config=load_yaml(task_file(task)) | {"num_fewshot": 0, "fewshot_split": None})
    evaluated = evaluation_split(task)
    for split, docs in (("train", stock.training_docs()), (evaluated, stock.eval_docs)):
        examples = render(ours, split)
        assert len(examples) == len(rows)
        for example, doc in zip(examples, docs, strict=True):
            context = stock.fewshot_context(doc, num_fewshot=0, gen_prefix=stock.doc_to_prefix(doc))
            requests = [request.args for request in stock.construct_requests(doc, context)]
            choices = len(stock.doc_to_choice(doc))
            # lm-eval's own judgement: the one option that it counts as right when it is the most likely.
            right = [
                option
                for option in range(choices)
                if stock.process_results(
                    doc, [(float(place == option), False) for place in range(choices)]
                ).get("acc")
                == 1.0
            ]
            assert len(right) == 1
            assert (example.prompt, example.completion) == requests[right[0]]
            if not stock.multiple_input:
                assert [(example.prompt, option) for option in example.options] == requests[:choices]


def test_the_census_names_what_can_be_used_and_why_not(capsys, tmp_path):
    write_split(tmp_path, "ai2_arc/ARC-Easy", "train", [arc(n) for n in range(7)])
    arguments = ["tasks", "^(arc_easy|arc_challenge|gpqa_main_zeroshot|webqs|triviaqa|cola|mutual)$", "--all"]
    assert main([*arguments, "--data-root", str(tmp_path)]) == 0
    output = capsys.readouterr()
    said = {line.split()[0]: line for line in output.out.splitlines()}
    assert said["arc_easy"].split(maxsplit=1)[1] == "ai2_arc/ARC-Easy train 7"
    assert "glue/cola" in said["cola"]
    assert "which it is trained on" in said["gpqa_main_zeroshot"]
    assert "process_results" in said["mutual"]
    assert "generate_until" in said["triviaqa"]
    assert "not by the option" in said["webqs"]
    assert "3 of 7 tasks can be trained" in output.err
    assert main(["tasks", "("]) == 2
