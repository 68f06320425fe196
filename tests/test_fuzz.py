"""Whatever is read from a file: a right result or one line that says what is wrong, never another exception.

`make fuzz` tries a few thousand cases of each (HYPOTHESIS_PROFILE=fuzz), the normal run some dozens.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from mola_core.adapter import MolaConfig
from mola_core.analysis.score_files import load_scores
from mola_core.analysis.scores import COLUMNS
from mola_core.analysis.statistics.decide import decide
from mola_core.errors import MolaError
from mola_core.models.weights import load_adapter
from mola_core.shapes import budget, experts_per_layer
from mola_core.study.loading import STUDIES, load_study
from mola_core.study.study import Study
from mola_core.tasks import evaluation_split, task_config

CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile(
    "quick", max_examples=60, deadline=None, derandomize=True, suppress_health_check=CHECKS
)
settings.register_profile("fuzz", max_examples=3000, deadline=None, suppress_health_check=CHECKS)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)

SHIPPED = {file.stem: yaml.safe_load(file.read_text()) for file in STUDIES.glob("*.yaml")}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["../x", "a/b", "$(touch x)", "; rm -rf /", "{seed}", "mola-0", "lora-r0", "mola-99", "1e999"]
    )
    | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


def one_line(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


def places(content, path=()):
    """Paths of all values in a nested structure."""
    yield path
    entries = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in entries:
        yield from places(value, (*path, key))


@st.composite
def mutated_studies(draw):
    """A shipped study with a few values replaced, removed or added."""
    content = json.loads(json.dumps(SHIPPED[draw(st.sampled_from(sorted(SHIPPED)))], default=str))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([place for place in places(content) if place]))
        owner = content
        for key in path:
            owner = owner[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                owner[last] = draw(VALUES)
            case "remove":
                del owner[last]
            case "add" if isinstance(owner, dict):
                owner[draw(st.text(max_size=10))] = draw(VALUES)
        if not list(places(content))[1:]:
            break
    return content


@given(content=mutated_studies())
def test_a_study_is_read_or_refused_in_one_line(tmp_path, content):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    try:
        study = load_study(file)
    except MolaError as error:
        one_line(error)
        return
    cells = study.all_cells()
    assert len(set(cells)) == len(cells)
    for cell in cells[:50]:
        assert not set(cell.path) & set(" ;$`'\"\\{}*?<>|&()\n"), (
            "nothing that a shell or a file name would read"
        )
        assert ".." not in cell.path.split("/")
    again = Study.model_validate(json.loads(json.dumps(study.model_dump(mode="json", exclude_none=True))))
    assert again == study


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@example(content=b"a: &a [*a]")
@example(content=b"&a [" * 2000)
@example(content=b"name: 2024-99-99")
@example(content=b"seeds: " + b"1" * 5000)
@example(
    content=b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9))
    + b"name: *j"
)
@example(content=b"!!python/object/apply:os.system [exit]")
def test_any_bytes_are_a_study_or_one_line(tmp_path, content):
    file = tmp_path / "study.yaml"
    file.write_bytes(content)
    with pytest.raises(MolaError) as error:
        load_study(file)
    one_line(error.value)
    assert len(str(error.value)) < 1000


@given(
    shape=st.text(max_size=12) | st.from_regex(r"[0-9]{0,6}(-[0-9]{1,3}){0,5}", fullmatch=True),
    depth=st.integers(-2, 200),
)
def test_a_shape_has_one_count_for_each_layer_or_is_refused(shape, depth):
    try:
        experts = experts_per_layer(shape, depth)
    except (MolaError, ValueError) as error:
        one_line(error)
        return
    assert len(experts) == depth
    assert min(experts) >= 1
    assert budget(shape) > 0


@given(name=st.text(max_size=30) | st.sampled_from(["cola", "../cola", "/etc/passwd", "arc_easy/../x", ""]))
def test_a_task_is_known_or_refused_in_one_line(name):
    try:
        config = task_config(name)
    except MolaError as error:
        one_line(error)
        return
    assert config["dataset_path"]
    assert evaluation_split(name)


def base_scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        ("s", "m", task, method, seed, f"d{document}", int(rng.integers(2)))
        for task in ("t1", "t2")
        for method in ("mola-2468", "mola-8642", "lora-r8")
        for seed in (0, 1)
        for document in range(6)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@st.composite
def score_frames(draw):
    """A score matrix with rows dropped or doubled and cells of any column replaced."""
    frame = base_scores().astype(object)
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.integers(0, len(frame) - 1)) if len(frame) else 0
        match draw(st.sampled_from(["cell", "drop", "double", "column", "rename", "cut", "seed"])):
            case "cell" if len(frame):
                frame.iat[row, draw(st.integers(0, frame.shape[1] - 1))] = draw(SCALARS)
            case "drop" if len(frame):
                frame = frame.drop(index=frame.index[row]).reset_index(drop=True)
            case "double" if len(frame):
                frame = pd.concat([frame, frame.iloc[[row]]], ignore_index=True)
            case "column":
                frame = frame.drop(columns=draw(st.sampled_from(list(frame.columns))))
            case "rename":
                old = draw(st.sampled_from(list(frame.columns)))
                frame = frame.rename(columns={old: draw(st.text(max_size=5))})
            case "cut":
                frame = frame.iloc[: draw(st.integers(0, len(frame)))].reset_index(drop=True)
            case "seed" if "seed" in frame:
                frame["seed"] = draw(st.sampled_from([0.5, -1, 2**63, "one", 3.0, True]))
        if frame.shape[1] < 2:
            break
    return frame


@given(frame=score_frames(), kind=st.sampled_from(["csv", "parquet"]), cut=st.integers(0, 30))
def test_a_score_file_gives_a_verdict_or_one_line(tmp_path, frame, kind, cut):
    file = tmp_path / f"scores.{kind}"
    if kind == "csv":
        file.write_text(frame.to_csv(index=False), encoding="utf-8", errors="surrogatepass")
    else:
        try:
            frame.to_parquet(file)
        except Exception:  # pyarrow cannot write every mixture: then there is no such file
            frame.astype(str).to_parquet(file)
    if cut < 5:
        file.write_bytes(file.read_bytes()[: -1 - cut])
    try:
        scores = load_scores(file)
        verdict = decide(scores, resamples=100)
    except MolaError as error:
        one_line(error)
        return
    assert set(scores["correct"]) <= {0, 1}
    for question in verdict["questions"]:
        if question.get("estimate") is not None:
            assert -100 <= question["estimate"] <= 100


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    def make_base():
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 32}
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))

    config = MolaConfig(num_experts=[2, 3], top_k=2, r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(make_base(), config).save_pretrained(folder)
    return make_base, folder


FIELDS = [
    "num_experts",
    "top_k",
    "r",
    "lora_alpha",
    "target_modules",
    "peft_type",
    "task_type",
    "lora_dropout",
]


@given(data=st.data())
def test_an_adapter_folder_is_loaded_or_refused(tmp_path, adapter_folder, data):
    make_base, whole = adapter_folder
    folder = tmp_path / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    kind = data.draw(st.sampled_from(["field", "cut config", "cut tensors", "bytes", "gone"]))
    if kind == "field":
        content = json.loads(config.read_text())
        content[data.draw(st.sampled_from(FIELDS))] = data.draw(
            VALUES.filter(lambda value: "date" not in type(value).__name__)
            | st.lists(st.integers(-1, 5), max_size=3)
        )
        config.write_text(json.dumps(content, default=str))
    elif kind == "cut config":
        config.write_bytes(config.read_bytes()[: data.draw(st.integers(0, 400))])
    elif kind == "cut tensors":
        size = tensors.stat().st_size
        tensors.write_bytes(tensors.read_bytes()[: data.draw(st.integers(0, size - 1))])
    elif kind == "bytes":
        content = bytearray(tensors.read_bytes())
        content[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
        tensors.write_bytes(content)
    else:
        data.draw(st.sampled_from([config, tensors])).unlink()
    try:
        model: PeftModel = load_adapter(make_base(), folder)
    except MolaError as error:
        one_line(error)
        return
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 32)


def test_files_of_strangers_leave_nothing_behind(tmp_path):
    """A study's names go into paths and commands: a hostile one is refused before anything runs."""
    content = SHIPPED["smoke"]
    hostile = [
        "../up",
        "a b",
        "$(touch owned)",
        "`touch owned`",
        "a;b",
        "a\nb",
        "-rf",
        "{seed}",
        "a/b",
        "",
        "x" * 90,
    ]
    for name in hostile:
        for change in (
            {"name": name},
            {"tasks": [name]},
            {"methods": [{"method": "lora-r4", "name": name}]},
            {"model": {"name": name, "source": "random"}},
        ):
            file = tmp_path / "study.yaml"
            file.write_text(yaml.safe_dump(content | change))
            with pytest.raises(MolaError) as error:
                load_study(file)
            one_line(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]
    assert not Path("owned").exists()
