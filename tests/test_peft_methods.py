"""Methods of PEFT by config and by short name: what is refused, built, trained, saved and loaded, and PEFT's own loops."""

import dataclasses

import pyarrow.parquet as pq
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel
from peft.optimizers import create_loraplus_optimizer
from test_controls import MODELS, base_of, built, layer_of, study_of
from transformers import set_seed

from mola_core.errors import MolaError
from mola_core.methods import peft_configs
from mola_core.methods.registry import adapter_config, closed_form
from mola_core.methods.settings import SEVEN_MODULES, AdapterSettings, MethodSettings
from mola_core.models import building
from mola_core.models.tokens import Encoded
from mola_core.models.weights import continued_adapter, load_adapter, new_adapter, save_weights, unload
from mola_core.runs import prepare
from mola_core.study.effective import EffectiveTraining
from mola_core.training.batches import LengthGrouped, first_micro_batches, left_pad
from mola_core.training.trainer import train

STUDY = AdapterSettings(rank=2, alpha=4, dropout=0.0)
STEPS = 6


class Words:
    pad_token_id = 0


def peft(**config):
    return MethodSettings(method="peft", name="mine", config=config)


def documents(count=16):
    torch.manual_seed(1)
    return [Encoded(torch.randint(1, 60, (5 + n % 7,)).tolist(), 4 + n % 7) for n in range(count)]


def settings(**changes):
    options = {"batch_size": 4, "micro_batch_size": 4, "max_steps": STEPS, "warmup_steps": 0}
    return EffectiveTraining(**options | {"learning_rate": 1e-2, "scheduler": "constant"} | changes)


def batches():
    return first_micro_batches(documents(), 4, 4, 0, 0, "answer", 4)


def adapted(base, method, folder, **changes):
    return new_adapter(base, method, STUDY, folder, batches=batches(), steps=STEPS)


CONFIGS = {
    "dora": {"peft_type": "LORA", "use_dora": True, "r": 4},
    "rslora": {"peft_type": "LORA", "use_rslora": True, "r": 4, "lora_alpha": 4},
    "olora": {"peft_type": "LORA", "init_lora_weights": "olora", "r": 4},
    "eva": {"peft_type": "LORA", "init_lora_weights": "eva", "r": 4, "eva_config": {"rho": 1.5}},
    "lora-ga": {"peft_type": "LORA", "init_lora_weights": "lora_ga", "r": 4, "lora_ga_config": {}},
    "kasa": {"peft_type": "LORA", "r": 4, "kasa_config": {}},
    "vera": {"peft_type": "VERA", "r": 8},
    "ia3": {"peft_type": "IA3"},
    "ln-tuning": {"peft_type": "LN_TUNING"},
    "oft": {"peft_type": "OFT", "oft_block_size": 4},
    "miss": {"peft_type": "MISS", "r": 4},
    "randlora": {"peft_type": "RANDLORA", "r": 4},
    "loha": {"peft_type": "LOHA", "r": 2},
    "lokr": {"peft_type": "LOKR", "r": 2},
    "adalora": {"peft_type": "ADALORA", "init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2},
    "p-tuning": {"peft_type": "P_TUNING", "num_virtual_tokens": 4},
    "lora-llama": {"peft_type": "LORA", "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_method_of_peft_is_trained_saved_loaded_and_taken_off(tiny_llama, tmp_path, name):
    model = adapted(tiny_llama(), peft(**CONFIGS[name]), tmp_path)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    outcome, log = train(model, Words(), documents(), settings(), 0, tmp_path / "scratch")
    assert outcome["steps"] == STEPS
    assert any(not torch.equal(p, start[n]) for n, p in model.named_parameters() if n in start)
    ids = left_pad([document.tokens for document in documents(3)], 0)
    with torch.no_grad():
        expected = model.eval()(**ids).logits
        save_weights(model, tmp_path / "adapter", "tiny", "float32", tmp_path)
        loaded = load_adapter(tiny_llama(), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(**ids).logits, expected, atol=1e-5, rtol=1e-5)
        bare = tiny_llama()(**ids).logits
        assert (expected[:, -bare.shape[1] :] - bare).abs().max() > 1e-4
        base = unload(model)
        if base is not None:
            assert torch.equal(base.eval()(**ids).logits, tiny_llama()(**ids).logits)
    continued_adapter(tiny_llama(), tmp_path / "adapter")


@pytest.mark.parametrize("start", ["eva", "lora-ga"])
def test_a_start_that_looks_at_data_depends_on_them_and_changes_no_answer(tiny_llama, tmp_path, start):
    method = peft(**CONFIGS[start])
    model = adapted(tiny_llama(), method, tmp_path)
    ids = left_pad([document.tokens for document in documents(3)], 0)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(**ids).logits, tiny_llama()(**ids).logits, atol=1e-5, rtol=1e-5
        )
    others = first_micro_batches(documents(), 4, 4, 5, 0, "answer", 2)
    other = new_adapter(tiny_llama(), method, STUDY, tmp_path, batches=others)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    ) or (sum(p.numel() for p in model.parameters()) != sum(p.numel() for p in other.parameters()))
    with pytest.raises(MolaError, match="needs batches of a training"):
        new_adapter(tiny_llama(), method, STUDY, tmp_path)


def test_eva_with_too_few_tokens_is_refused_and_does_not_wait_for_ever(tiny_llama, tmp_path):
    method = peft(peft_type="LORA", init_lora_weights="eva", r=16, eva_config={"rho": 2.0})
    few = first_micro_batches(documents(), 2, 2, 0, 0, "answer", 2)
    with pytest.raises(MolaError, match="EVA looks for 32 directions in micro-batches of .* tokens"):
        new_adapter(tiny_llama(), method, STUDY, tmp_path, batches=few)


def batches_in_order(count, size=4):
    """The micro-batches of a training with seed 0, made by hand: batches of four documents, `size` at a time."""
    from mola_core.training.batches import Collator

    rows, sampler = documents(), LengthGrouped([len(d.tokens) for d in documents()], 4, 0)
    order = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order += list(sampler)
    collate = Collator(0, "answer")
    return [collate([rows[i] for i in order[n : n + size]]) for n in range(0, 4 * count, size)]


def own_loop(model, optimiser, after, size=4):
    found = batches_in_order(STEPS, size)
    for step in range(STEPS):
        for batch in found[step * 4 // size : (step + 1) * 4 // size]:
            (model(**batch, use_cache=False).loss * size / 4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        after(step)
        optimiser.zero_grad()


@pytest.mark.parametrize(("by", "size"), [("config", 4), ("name", 4), ("name", 2)])
def test_adalora_is_trained_as_in_pefts_own_loop(tiny_llama, tmp_path, by, size):
    """Its regulariser counts once a batch, also where that is two micro-batches."""
    method = peft(**CONFIGS["adalora"]) if by == "config" else MethodSettings(method="adalora-r3")
    torch.manual_seed(0)
    theirs = adapted(tiny_llama(), method, tmp_path).train()
    torch.manual_seed(0)
    ours = adapted(tiny_llama(), method, tmp_path)
    train(ours, Words(), documents(), settings(micro_batch_size=size), 0, tmp_path / "scratch")
    assert ours.peft_config["default"].orth_reg_weight == theirs.peft_config["default"].orth_reg_weight == 0.5
    optimiser = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    own_loop(theirs, optimiser, theirs.base_model.update_and_allocate, size)
    patterns = [model.peft_config["default"].rank_pattern for model in (ours, theirs)]
    assert patterns[0] == patterns[1]
    kept = [sum(map(sum, pattern.values())) for pattern in patterns]
    assert kept[0] == 3 * 7 * 4, "as many ranks as target_r in every module on average"
    assert len({sum(row) for row in patterns[0].values()}) > 1, "and not the same in each"
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


BEGIN_ANEW = {
    "adalora": CONFIGS["adalora"],
    "p-tuning": CONFIGS["p-tuning"],
    "prefix-projected": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_projection": True},
    "monteclora": {"peft_type": "LORA", "r": 4, "monteclora_config": {}},
}
"""Of which checkpoints do not hold all that the training goes on from."""


@pytest.mark.parametrize("name", {**CONFIGS, **BEGIN_ANEW})
def test_a_training_that_was_stopped_ends_as_one_that_was_not(tiny_llama, tmp_path, name):
    from mola_core.errors import OutOfTime

    ends, resumed = [], []
    for stopped in (False, True):
        folder, scratch = tmp_path / str(stopped), tmp_path / str(stopped) / "scratch"
        folder.mkdir()
        for deadline in [1.0, None] if stopped else [None]:
            set_seed(0)
            model = adapted(tiny_llama(), peft(**({**CONFIGS, **BEGIN_ANEW}[name])), folder)
            try:
                outcome, _ = train(model, Words(), documents(), settings(), 0, scratch, deadline=deadline)
            except OutOfTime:
                assert bool(list(scratch.glob("checkpoint-*"))) == (name not in BEGIN_ANEW)
        ends.append([parameter.detach() for parameter in model.parameters()])
        resumed.append(outcome["resumed"])
    assert resumed == [False, name not in BEGIN_ANEW]
    assert all(map(torch.equal, *ends))


def test_loraplus_is_trained_as_with_pefts_own_optimiser(tiny_llama, tmp_path):
    method = MethodSettings(method="lora-r4", loraplus_ratio=8.0)
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(adapted(tiny_llama(), method, tmp_path).train())
    ours, theirs, plain = models
    options = settings(loraplus_ratio=8.0, weight_decay=0.01, learning_rate=1e-3)
    train(ours, Words(), documents(), options, 0, tmp_path / "a")
    optimiser = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.01
    )
    own_loop(theirs, optimiser, lambda step: None)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)
    train(plain, Words(), documents(), settings(weight_decay=0.01, learning_rate=1e-3), 0, tmp_path / "b")
    assert not torch.allclose(
        *(m.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight for m in (ours, plain)),
        atol=1e-3,
    )


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mixtral"])
@pytest.mark.parametrize("half", ["upper", "lower"])
def test_half_of_the_layers_has_the_parameters_of_all(name, half, tmp_path):
    model = new_adapter(base_of(name), MethodSettings(method=f"lora-{half}-r3"), study_of(name), tmp_path)
    found = built(model)
    assert {layer_of(module) for module in found} == set(range(6, 12) if half == "upper" else range(6))
    assert all(value == (6, pytest.approx(1.5)) for value in found.values()), (
        "twice the rank at the same scale"
    )
    whole = new_adapter(base_of(name), MethodSettings(method="lora-r3"), study_of(name), tmp_path)
    assert len(set(map(trainable, (model, whole)))) == 1
    save_weights(model, tmp_path / "adapter", "tiny", "float32", tmp_path)
    assert built(load_adapter(base_of(name), tmp_path / "adapter")) == found


def test_a_half_that_peft_cannot_leave_out_is_refused(tmp_path):
    """A router of Mixtral is a parameter to PEFT, which adapts all of one name."""
    with pytest.raises(
        MolaError, match=r"layers\.6\.mlp\.gate has rank 6 and scale 1\.5, asked for were 0, 0"
    ):
        new_adapter(base_of("mixtral"), MethodSettings(method="lora-lower-r3"), study_of("mixtral"), tmp_path)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_an_odd_depth_leaves_its_middle_layer_out(tiny_llama, tmp_path):
    found = {}
    for half in ("lower", "upper"):
        base = tiny_llama(num_hidden_layers=5)
        model = new_adapter(base, MethodSettings(method=f"lora-{half}-r3"), STUDY, tmp_path)
        found[half] = {layer_of(module): value for module, value in built(model).items()}
        assert trainable(model) == trainable(
            new_adapter(tiny_llama(num_hidden_layers=5), MethodSettings(method="lora-r3"), STUDY, tmp_path)
        )
    assert found["lower"] == {0: (8, 2.0), 1: (7, 2.0)}
    assert found["upper"] == {3: (7, 2.0), 4: (8, 2.0)}


@pytest.mark.parametrize(
    "method",
    ["lora-r4", "rslora-r4", "dora-r4", "adalora-r4", "lora-upper-r4", "lora-matched-2468", "mola-2468"],
)
def test_parameters_in_closed_form_are_those_that_are_trained(tiny_llama, tmp_path, method):
    each = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    sizes = [dict(zip(SEVEN_MODULES, each, strict=True))] * 4
    counted = trainable(
        new_adapter(tiny_llama(), MethodSettings(method=method), STUDY, tmp_path, steps=STEPS)
    )
    assert closed_form(MethodSettings(method=method), STUDY, sizes) in (counted, None)
    per_rank, outputs = (
        sum(a + b for layer in sizes for a, b in layer.values()),
        sum(b for layer in sizes for _, b in layer.values()),
    )
    by_hand = {
        "dora-r4": 4 * per_rank + outputs,
        "adalora-r4": 6 * (per_rank + 28),
        "lora-upper-r4": 4 * per_rank,
    }
    assert counted == by_hand.get(method, counted)


def test_fields_of_peft_are_read_as_peft_has_them():
    """Contract with PEFT: all config classes of its table, but for ours, which is not PEFT's."""
    theirs = {
        str(getattr(kind, "value", kind)): {field.name for field in dataclasses.fields(config) if field.init}
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    del theirs["MOLA"]
    assert {kind: set(peft_configs.fields_of(kind)) for kind in peft_configs.kinds()} == theirs
    assert len(theirs) > 40


def test_defaults_of_peft_are_of_the_types_that_are_checked():
    for kind in peft_configs.kinds():
        fields = dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])
        defaults = {
            f.name: f.default for f in fields if isinstance(f.default, bool | int | float | str | None)
        }
        for key in defaults.keys() & peft_configs.fields_of(kind).keys() - {"peft_type", "task_type"}:
            peft_configs._check_type(key, defaults[key], peft_configs.fields_of(kind)[key])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "peft_type is missing"),
        ({"peft_type": 3}, "peft_type is missing"),
        ({"peft_type": "lorra"}, "'lorra' is none of PEFT's, did you mean 'LORA'.*VERA"),
        ({"peft_type": "LORA", "rank": 8}, r"config\.rank: LORA has no such key; it has .*lora_alpha"),
        ({"peft_type": "VERA", "lora_alpha": 8}, r"config\.lora_alpha: VERA has no such key"),
        (
            {"peft_type": "LORA", "base_model_name_or_path": "x"},
            "base_model_name_or_path: names files or code",
        ),
        ({"peft_type": "LORA", "megatron_core": "os"}, "megatron_core: names files or code"),
        (
            {"peft_type": "LORA", "auto_mapping": {"parent_library": "os"}},
            "auto_mapping: names files or code",
        ),
        ({"peft_type": "LORA", "init_lora_weights": "../x.pt"}, "looks like a path"),
        ({"peft_type": "LORA", "target_modules": ["/etc/passwd"]}, "looks like a path"),
        ({"peft_type": "LORA", "modules_to_save": ["C:\\x"]}, "looks like a path"),
        ({"peft_type": "LORA", "eva_config": {"cache_file": "x"}}, r"eva_config\.cache_file: names files"),
        ({"peft_type": "LORA", "rank_pattern": {"~/x": 2}}, "looks like a path"),
        ({"peft_type": "LORA", "corda_config": {}}, "corda_config: not supported: CorDA needs"),
        ({"peft_type": "LORA", "init_lora_weights": "corda"}, "corda is not supported"),
        ({"peft_type": "LORA", "init_lora_weights": "loftq"}, "loftq is not supported"),
        (
            {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}},
            "names files or code",
        ),
        ({"peft_type": "LORA", "task_type": "SEQ_CLS"}, "task_type: it is always CAUSAL_LM"),
        ({"peft_type": "LORA", "inference_mode": True}, "inference_mode"),
        ({"peft_type": "ADALORA", "total_step": 5}, "total_step: it is the number of steps"),
        ({"peft_type": "XLORA", "adapters": {"a": "b"}}, "XLORA cannot be trained here"),
        ({"peft_type": "MOLA"}, "use the methods mola-<shape>"),
        ({"peft_type": "LORA", "r": {1: 2}}, "no name"),
        ({"peft_type": "LORA", "r": "8"}, r"config\.r: must be a whole number, not '8'"),
        ({"peft_type": "LORA", "r": 8.5}, r"config\.r: must be a whole number"),
        ({"peft_type": "LORA", "r": True}, r"config\.r: must be a whole number"),
        ({"peft_type": "LORA", "use_dora": "yes"}, r"config\.use_dora: must be true or false"),
        ({"peft_type": "LORA", "lora_alpha": "16"}, r"config\.lora_alpha: must be a number"),
        (
            {"peft_type": "LORA", "lora_alpha": 0},
            r"config\.lora_alpha: 0 scales whatever is learnt to nothing",
        ),
        ({"peft_type": "LORA", "lora_dropout": float("nan")}, r"config\.lora_dropout: nan is no finite"),
        (
            {"peft_type": "LORA", "target_modules": [1]},
            r"config\.target_modules: must be text or a list of texts",
        ),
        (
            {"peft_type": "LORA", "rank_pattern": ["q_proj"]},
            r"config\.rank_pattern: must be a mapping",
        ),
        ({"peft_type": "PREFIX_TUNING"}, r"config\.num_virtual_tokens: missing; add it"),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 100_000},
            r"config\.num_virtual_tokens: must be 1 to 4,096",
        ),
        (
            {"peft_type": "LORA", "lora_dropout": -1},
            r"config\.lora_dropout: must be at least 0 and below 1, not -1",
        ),
        ({"peft_type": "LORA", "layers_to_transform": []}, r"config\.layers_to_transform: names no layer"),
        ({"peft_type": "ADALORA", "init_r": 4, "target_r": 4}, r"config\.target_r: 4 is not below init_r 4"),
        ({"peft_type": "ADALORA", "target_r": 12}, r"config\.target_r: 12 is not below init_r 12"),
    ],
)
def test_a_config_that_peft_has_not_or_that_names_files_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        peft(**config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "MISS", "r": 64}, "must be less than or equal to in_features"),
        ({"peft_type": "OFT", "r": 8, "oft_block_size": 4}, "either r"),
        ({"peft_type": "LORA", "target_modules": ["nowhere"]}, "nowhere"),
        ({"peft_type": "LORA", "target_modules": ["q_proj", "nowhere"]}, "'nowhere' is no module"),
        ({"peft_type": "LORA", "init_lora_weights": "sideways"}, "sideways"),
        ({"peft_type": "LORA", "eva_config": {"tau": 2.0}, "init_lora_weights": "eva"}, "tau"),
        ({"peft_type": "LORA", "use_dora": True, "init_lora_weights": "olora"}, "use_dora with a start"),
        ({"peft_type": "ADALORA", "tinit": 9}, "tinit"),
        (
            {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": ["down_proj"]},
            "feedforward",
        ),
        (
            {"peft_type": "LORA", "rank_pattern": {"q_prj": 2}},
            "rank_pattern: 'q_prj' is the name of nothing here",
        ),
        (
            {"peft_type": "LORA", "alpha_pattern": {"lm_head": 2}},
            "alpha_pattern: 'lm_head' is the name of nothing here",
        ),
        (
            {"peft_type": "LOHA", "rank_pattern": {"q_prj": 2}},
            "rank_pattern: 'q_prj' is the name of nothing here",
        ),
        (
            {"peft_type": "LORA", "exclude_modules": ["q_prj"]},
            "exclude_modules: 'q_prj' is the name of nothing here",
        ),
        (
            {"peft_type": "LORA", "exclude_modules": ".*q_prj"},
            r"exclude_modules: '\.\*q_prj' is the name of nothing here",
        ),
        (
            {"peft_type": "VERA", "modules_to_save": ["lm_haed"]},
            "modules_to_save: 'lm_haed' is the name of nothing here",
        ),
        (
            {"peft_type": "OFT", "oft_block_size": 4, "layers_to_transform": [1, 9]},
            r"layers_to_transform: \[9\]",
        ),
        ({"peft_type": "LORA", "layers_to_transform": 4}, "not found in the base model"),
    ],
)
def test_what_peft_cannot_build_is_one_line_before_training(tiny_llama, tmp_path, config, words):
    with pytest.raises(MolaError, match=words) as caught:
        adapted(tiny_llama(), peft(**config), tmp_path)
    assert str(caught.value).startswith("method mine: ") and "\n" not in str(caught.value)


def test_ranks_and_scales_by_patterns_are_read_back(tiny_llama, tmp_path, monkeypatch):
    patterns = {"rank_pattern": {"v_proj": 6, r"model\.layers\.3\.self_attn\.q_proj": 2}}
    method = peft(peft_type="LORA", r=4, lora_alpha=4, **patterns, alpha_pattern={"down_proj": 1})
    model = adapted(tiny_llama(), method, tmp_path)
    expected = {"v_proj": (6, 4 / 6), "3.self_attn.q_proj": (2, 2), "down_proj": (4, 1 / 4)}
    for name, found in built(model).items():
        own = next((value for end, value in expected.items() if name.endswith(end)), (4, 1))
        assert found == (own[0], pytest.approx(own[1])), name
    real = building.resolved

    def without(base, config, steps=None):
        found = real(base, config, steps)
        found.rank_pattern = {}
        return found

    monkeypatch.setattr(building, "resolved", without)
    with pytest.raises(MolaError, match=r"v_proj has rank 4 and scale 1, asked for were 6, 0\.666667"):
        adapted(tiny_llama(), method, tmp_path)


def test_target_modules_are_the_studys_where_the_config_names_none():
    study = AdapterSettings(target_modules=["q_proj", "down_proj"])
    for kind in ("LORA", "VERA", "IA3", "OFT", "LOHA"):
        assert adapter_config(peft(peft_type=kind), study, 4)["target_modules"] == ["q_proj", "down_proj"]
        own = adapter_config(peft(peft_type=kind, target_modules=["v_proj"]), study, 4)
        assert own["target_modules"] == ["v_proj"]
    assert "target_modules" not in adapter_config(peft(peft_type="LN_TUNING"), study, 4)
    with pytest.raises(ValueError, match="target_modules stand in config too"):
        MethodSettings(
            method="peft",
            name="x",
            target_modules=["k_proj"],
            config={"peft_type": "LORA", "target_modules": ["q_proj"]},
        )


def test_a_config_may_bear_the_name_of_the_method_that_it_is():
    for name, config in (
        ("dora-r8", {"peft_type": "LORA", "use_dora": True, "r": 8, "lora_alpha": 4}),
        ("lora-r4", {"peft_type": "LORA", "r": 4}),
        ("adalora-r3", {"peft_type": "ADALORA", "init_r": 5, "target_r": 3}),
    ):
        assert MethodSettings(method="peft", name=name, config=config).label == name
    for name, config in (
        ("dora-r8", {"peft_type": "LORA", "r": 8}),
        ("dora-r8", {"peft_type": "LORA", "r": 4, "use_dora": True}),
        ("lora-r4", {"peft_type": "VERA", "r": 4}),
        ("lora-matched-2468", {"peft_type": "LORA", "r": 8}),
        ("mola-2468", {"peft_type": "LORA", "r": 8}),
        ("base", {"peft_type": "LORA", "r": 8}),
    ):
        with pytest.raises(ValueError, match="would be taken for another by it"):
            MethodSettings(method="peft", name=name, config=config)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"method": "peft", "name": "x"}, "`config` goes with method `peft`"),
        ({"method": "lora-r4", "config": {"peft_type": "LORA"}}, "`config` goes with method `peft`"),
        ({"method": "mola-2468", "loraplus_ratio": 4.0}, "loraplus_ratio means nothing to it"),
        ({"method": "lora-r4", "loraplus_ratio": 0.5}, "greater than or equal to 1"),
        (
            {"method": "peft", "name": "x", "loraplus_ratio": 4.0, "config": {"peft_type": "VERA"}},
            "loraplus_ratio is for a LoRA whose B is trained",
        ),
        (
            {"method": "peft", "name": "x", "loraplus_ratio": 4.0}
            | {"config": {"peft_type": "LORA", "init_lora_weights": "mica"}},
            "loraplus_ratio is for a LoRA whose B is trained",
        ),
    ],
)
def test_settings_of_other_methods_are_refused(content, words):
    with pytest.raises(ValueError, match=words):
        MethodSettings(**content)


def test_a_study_of_many_methods_is_trained_and_evaluated(bench):
    configs = [
        {"method": "peft", "name": name, "config": CONFIGS[name]}
        for name in ("vera", "ia3", "lora-ga", "oft")
    ]
    names = ["dora-r4", "rslora-r4", "adalora-r4", "lora-upper-r4"]
    plus = {"method": "lora-r4", "name": "lora-plus", "loraplus_ratio": 4.0}
    runner = bench(
        methods=["base", *names, plus, *configs], seeds=[0], tasks=["cola"], evaluation={"documents": 8}
    )
    from mola_core.records import read_record

    for cell in runner.study.cells():
        runner.run(cell)
        record = read_record(runner.layout.cell(cell) / "manifest.json")
        assert record["training"] is None or record["training"]["trainable_parameters"] > 0
    assert isinstance(runner.base.model, torch.nn.Module) and not isinstance(runner.base.model, PeftModel)


@pytest.mark.parametrize(
    ("methods", "room", "words"),
    [
        (
            ["base", "prompt-tuning"],
            39,
            r"training\.max_length: 300, but the base model has 339 positions, of which",
        ),
        (["base", "prompt-tuning"], 40, None),
        (["base", "llama-adapter"], 0, None),
    ],
)
def test_virtual_tokens_take_positions_of_the_model(bench, monkeypatch, methods, room, words):
    monkeypatch.setattr(prepare, "positions", lambda folder: 300 + room)
    study = {"methods": methods, "seeds": [0], "tasks": ["cola"], "training": {"max_length": 300}}
    if words is None:
        assert bench(**study)
    else:
        with pytest.raises(MolaError, match=words):
            bench(**study)


def test_documents_to_evaluate_on_have_room_behind_virtual_tokens(bench, monkeypatch):
    runner = bench(methods=["base"], seeds=[0], tasks=["cola"])
    rows = pq.read_table(runner.layout.examples("cola") / "evaluation.parquet")
    longest = max(rows["tokens"].to_pylist())
    wide = {
        "method": "peft",
        "name": "wide",
        "config": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 50},
    }
    monkeypatch.setattr(prepare, "positions", lambda folder: longest + 49)
    study = {"methods": ["base", "prompt-tuning", wide], "seeds": [0], "tasks": ["cola"]}
    settings = {"max_length": longest - 2}
    with pytest.raises(
        MolaError, match=f"task cola: a document of evaluation has {longest} tokens, .*wide takes 50"
    ):
        bench(**study, training=settings)
    assert bench(**study | {"methods": ["base", "prompt-tuning"]}, training=settings)
