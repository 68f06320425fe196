"""Every task's prompt, options and answer, in both protocols, through the objects that lm-eval evaluates."""

import subprocess
import sys
from pathlib import Path

import pytest
from task_rows import ANSWERS, OPTIONS, PROMPTS, ROWS, write_root, write_split

from mola_core.errors import MolaError
from mola_core.study.sections import CLOZE, SCIENCEQA_TOPICS, BuiltinData, DirectoryData
from mola_core.tasks import (
    FOLDER,
    dataset_of,
    evaluation_split,
    is_own,
    load_task,
    render,
    splits_of,
    task_config,
    task_names,
)
from mola_core.tasks.rows import prepare_task


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a prepared folder per task."""
    root = write_root(tmp_path_factory.mktemp("root"))
    out = tmp_path_factory.mktemp("prepared")
    for task in ROWS:
        prepare_task(task, DirectoryData(source="directory", root=str(root)), out / task)
    return out


@pytest.mark.parametrize("task", ROWS)
def test_choice_prompt_options_and_answer_are_the_papers(prepared: Path, task: str):
    loaded = load_task(task, "choice", prepared / task)
    lead = "Answer:" if OPTIONS[task][0].islower() or len(OPTIONS[task][0]) > 2 else "Answer: The answer is"
    for split in ("train", evaluation_split(task)):
        (example,) = render(loaded, split)
        assert example.prompt == PROMPTS[task] + lead
        assert example.options == OPTIONS[task]
        assert example.answer == ANSWERS[task]
        assert example.completion == OPTIONS[task][ANSWERS[task]]


@pytest.mark.parametrize("task", ROWS)
def test_generate_prompt_and_target_are_the_papers(prepared: Path, task: str):
    choice = render(load_task(task, "choice", prepared / task), "train")[0]
    (example,) = render(load_task(task, "generate", prepared / task), "train")
    assert example.prompt == PROMPTS[task]
    assert (example.options, example.answer) == ([], None)
    assert example.prompt + example.completion == choice.prompt + choice.completion + "."
    assert example.document == choice.document


def test_context_without_hint_is_not_available(tmp_path: Path):
    prepare_task(
        "scienceqa", BuiltinData(source="builtin", train_documents=40, test_documents=5), tmp_path / "data"
    )
    prompts = [
        example.prompt for example in render(load_task("scienceqa", "choice", tmp_path / "data"), "train")
    ]
    assert any("### Instruction:\nContext: N/A\nQuestion: " in prompt for prompt in prompts)
    assert any("Context: The goods are listed" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("task", "text", "correct"),
    [
        ("openbookqa", "Answer: The answer is D.", 1),
        ("openbookqa", "The answer is D. ### Response:\nThe answer is A.", 1),
        ("openbookqa", "The answer is D. The answer is D.", 0),
        ("openbookqa", "The answer is C.", 0),
        ("openbookqa", "Answer: D", 0),
        ("openbookqa", "", 0),
        ("mrpc", "Answer: equivalent.", 1),
        ("mrpc", "Answer: not equivalent.", 0),
        ("mrpc", "Answer: equivalent", 1),
        ("mrpc", "equivalent.", 0),
        ("mrpc", "Answer: equivalent. Answer: equivalent.", 0),
        ("cola", "Answer: unacceptable.", 1),
        ("cola", "Answer: acceptable.", 0),
    ],
)
def test_generated_answers_are_read_as_in_the_released_code(
    prepared: Path, task: str, text: str, correct: int
):
    loaded = load_task(task, "generate", prepared / task)
    assert loaded.process_results(loaded.eval_docs[0], [text])["acc"] == correct


def test_generation_is_greedy_and_bounded(prepared: Path):
    loaded = load_task("rte", "generate", prepared / "rte")
    assert loaded.config.generation_kwargs == {"do_sample": False, "max_gen_toks": 128, "until": []}


def test_cola_reports_matthews_in_both_protocols(prepared: Path):
    choice = load_task("cola", "choice", prepared / "cola")
    doc = choice.eval_docs[0]
    assert choice.process_results(doc, [(-1.0, True), (-2.0, False)]) == {"acc": 1.0, "mcc": (0, 0)}
    generate = load_task("cola", "generate", prepared / "cola")
    pairs = [generate.process_results(doc, [text])["mcc"] for text in ("Answer: acceptable.", "no idea")]
    assert pairs == [("unacceptable", "acceptable"), ("unacceptable", "")]
    right = [("acceptable", "acceptable"), ("unacceptable", "unacceptable")]
    assert generate.aggregation()["mcc"](right) == pytest.approx(1.0)
    assert set(generate.aggregation()) == set(choice.aggregation()) == {"acc", "mcc"}


def test_the_evaluation_sees_the_training_prompt_and_the_same_document_id(prepared: Path):
    from lm_eval import evaluator
    from lm_eval.models.dummy import DummyLM

    loaded = load_task("scienceqa", "choice", prepared / "scienceqa")
    outcome = evaluator.evaluate(DummyLM(), {"scienceqa": loaded}, bootstrap_iters=0, log_samples=True)
    (sample,) = outcome["samples"]["scienceqa"]
    (example,) = render(loaded, "test")
    assert sample["doc_hash"] == example.document
    requests = (
        [(part["arg_0"], part["arg_1"]) for part in sample["arguments"].values()]
        if isinstance(sample["arguments"], dict)
        else [tuple(part) for part in sample["arguments"]]
    )
    assert requests == [(example.prompt, option) for option in example.options]
    assert "acc" in sample


def test_splits_are_the_papers():
    tested = {task: evaluation_split(task) for task in ROWS}
    assert tested == {
        "mrpc": "test",
        "scienceqa": "test",
        "openbookqa": "test",
        "cola": "validation",
        "rte": "validation",
        "commonsenseqa": "validation",
    }
    assert all(task_config(task)["training_split"] == "train" for task in task_names())


def test_datasets_are_the_hubs():
    assert {
        task: (task_config(task)["dataset_path"], dataset_of(task)) for task in [*ROWS, "scienceqa-biology"]
    } == {
        "mrpc": ("nyu-mll/glue", "glue/mrpc"),
        "cola": ("nyu-mll/glue", "glue/cola"),
        "rte": ("nyu-mll/glue", "glue/rte"),
        "scienceqa": ("derek-thomas/ScienceQA", "scienceqa"),
        "scienceqa-biology": ("derek-thomas/ScienceQA", "scienceqa"),
        "commonsenseqa": ("tau/commonsense_qa", "commonsense_qa"),
        "openbookqa": ("allenai/openbookqa", "openbookqa/main"),
    }


def test_plain_lm_eval_finds_the_tasks_under_names_of_their_own():
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = TaskManager(include_path=str(FOLDER), include_defaults=False).all_subtasks
    whole = [task for task in task_names() if task not in SCIENCEQA_TOPICS]
    assert set(ROWS) < set(whole)
    assert {f"mola_{task.replace('-', '_')}" for task in whole} <= set(found)
    assert {f"mola_{task}_generate" for task in ROWS} <= set(found)
    stock = Path(lm_eval.__file__).parent / "tasks"
    assert not [path for path in stock.rglob("*.yaml") if b"task: mola_" in path.read_bytes()]


@pytest.mark.parametrize("task", ROWS)
def test_plain_lm_eval_gives_the_same_requests(monkeypatch: pytest.MonkeyPatch, prepared: Path, task: str):
    import datasets
    from lm_eval.tasks import TaskManager

    row = {key: value for key, value in ROWS[task].items() if key != "has_image"}
    splits = dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list([row]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    for protocol, name in [("choice", f"mola_{task}"), ("generate", f"mola_{task}_generate")]:
        plain = manager.load(name)["tasks"][name]
        ours = load_task(task, protocol, prepared / task)
        requests = []
        for loaded in (plain, ours):
            loaded.build_all_requests()
            requests.append([request.args for request in loaded.instances])
        assert requests[0] == requests[1]


@pytest.mark.parametrize(
    ("task", "prompt", "options"),
    [
        ("commonsenseqa", "Question: Where do fish live?\nAnswer:", ["sea", "sky", "oven", "desert", "moon"]),
        ("openbookqa", "Question: Ice melts into\nAnswer:", ["gold", "sand", "salt", "water"]),
    ],
)
def test_a_cloze_task_has_the_same_rows_and_options_as_text(tmp_path, task, prompt, options):
    root = write_root(tmp_path / "root")
    prepare_task(task + CLOZE, DirectoryData(source="directory", root=str(root)), tmp_path / "out")
    (example,) = render(load_task(task + CLOZE, "choice", tmp_path / "out"), "train")
    assert (example.prompt, example.options) == (prompt, [f" {option}" for option in options])
    assert example.answer == ANSWERS[task]
    assert dataset_of(task + CLOZE) == dataset_of(task)


def test_images_are_left_out_of_the_hubs_scienceqa():
    from datasets import Dataset

    from mola_core.tasks.answers import text_only

    rows = [
        {"image": image, "question": str(number)} for number, image in enumerate([None, {"path": "x"}, None])
    ]
    kept = text_only(Dataset.from_list(rows))
    assert (kept["question"][:], kept.column_names) == (["0", "2"], ["question"])


def test_importing_the_tasks_loads_neither_lm_eval_nor_torch():
    code = (
        "import sys, mola_core.tasks.rows, mola_core.tasks as t; t.dataset_of('scienceqa'); t.evaluation_split('cola');"
        "print(sorted({'torch', 'lm_eval', 'datasets', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


ARC_ROW = {
    "id": "a1",
    "question": "What melts?",
    "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
    "answerKey": "A",
}


def test_another_lm_eval_task_by_its_name(tmp_path: Path):
    for split in ("train", "validation", "test"):
        write_split(tmp_path, "ai2_arc/ARC-Easy", split, [ARC_ROW])
    prepare_task("arc_easy", DirectoryData(source="directory", root=str(tmp_path)), tmp_path / "out")
    loaded = load_task("arc_easy", "choice", tmp_path / "out")
    (example,) = render(loaded, "train")
    assert (example.prompt, example.options, example.completion) == (
        "Question: What melts?\nAnswer:",
        [" ice", " fire"],
        " ice",
    )
    assert (loaded.task_name, evaluation_split("arc_easy")) == ("arc_easy", "test")


def test_an_lm_eval_task_with_options_in_the_prompt_and_without_accuracy(tmp_path: Path):
    row = {"sentence": "Ann met Bea, so _ waved.", "option1": "Ann", "option2": "Bea", "answer": "2"}
    for split in ("train", "validation"):
        write_split(tmp_path, "winogrande/winogrande_xl", split, [row])
    prepare_task("winogrande", DirectoryData(source="directory", root=str(tmp_path)), tmp_path / "out")
    (example,) = render(load_task("winogrande", "choice", tmp_path / "out"), "train")
    assert (example.prompt, example.completion, example.options) == (
        "Ann met Bea, so Bea",
        " waved.",
        [" waved."],
    )

    blimp_like = {"sentence": "fine film", "label": 1, "idx": 0}
    for split in ("train", "validation"):
        write_split(tmp_path, "glue/sst2", split, [blimp_like])
    prepare_task("sst2", DirectoryData(source="directory", root=str(tmp_path)), tmp_path / "sst2")
    sst2 = load_task("sst2", "choice", tmp_path / "sst2")
    assert sst2.process_results(sst2.eval_docs[0], [(-2.0, False), (-1.0, True)])["acc"] == 1.0
    assert not is_own("sst2")
    assert splits_of("sst2") == {"train": "train", "validation": "validation"}


@pytest.mark.parametrize(
    ("task", "protocol", "words"),
    [
        ("no_such_task", "choice", "unknown; use one of cola, "),
        ("triviaqa", "choice", "generate_until, not a plain multiple_choice"),
        ("truthfulqa_mc1", "choice", "no training_split"),
        ("arc_easy", "generate", "use protocol choice"),
        ("cola", "choice", "prepare the data again"),
    ],
)
def test_a_task_that_cannot_be_studied_is_refused_in_one_line(
    tmp_path: Path, task: str, protocol: str, words: str
):
    with pytest.raises(MolaError, match=words) as error:
        load_task(task, protocol, tmp_path)
    assert "\n" not in str(error.value)
    assert task in str(error.value)
