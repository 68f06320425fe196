"""Every method a study can train: its parameter count, its loss by hand, saving, loading and going on."""

import copy

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from mola_core.analysis.reference import numbers as reference
from mola_core.errors import MolaError
from mola_core.evaluation.harness import check_adapter_acts
from mola_core.methods.registry import adapter_config
from mola_core.methods.settings import AdapterSettings, MethodSettings
from mola_core.models.building import build
from mola_core.models.tokens import Encoded, encode, encode_text
from mola_core.models.weights import (
    check_model_differs,
    continued_adapter,
    load_adapter,
    new_adapter,
    save_weights,
    unload,
    weights_sha256,
    whole_model,
)
from mola_core.study.loading import load_study
from mola_core.study.study import Study
from mola_core.training.batches import Collator, left_pad

ADAPTER = AdapterSettings(rank=2, alpha=4, dropout=0.0)
PEFT_METHODS = ["prompt-tuning", "llama-adapter", "lora-r4", "lora-matched-2468", "mola-2468"]
PISSA_METHODS = ["lora-r4", "lora-matched-2468", "mola-2468"]


def settings(method: str, initialisation: str | None = None) -> MethodSettings:
    return MethodSettings(method=method, initialisation=initialisation)


def pissa(method: str):
    chosen = settings(method, "pissa")
    return chosen, chosen.adapter(ADAPTER)


@pytest.fixture(scope="module")
def llama2_on_meta():
    """LLaMA-2-7B without its weights."""
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=4096,
                intermediate_size=11008,
                num_hidden_layers=32,
                num_attention_heads=32,
                vocab_size=32000,
                tie_word_embeddings=False,
            )
        )


@pytest.mark.parametrize("row", reference.parameters().itertuples(), ids=lambda row: row.method)
def test_the_papers_parameter_counts(llama2_on_meta, row):
    if row.method == "full":
        assert llama2_on_meta.num_parameters() == row.trainable_parameters
        return
    with torch.device("meta"):
        config = adapter_config(settings(row.method), AdapterSettings(), 32)
        model = build(copy.copy(llama2_on_meta), config)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if row.method == "llama-adapter":
        model.base_model.disable_adapter_layers()
    elif row.method != "prompt-tuning":
        model.unload()
    assert trainable == row.trainable_parameters


def rows():
    """Documents of different lengths, so that left padding matters."""
    torch.manual_seed(1)
    return [Encoded(torch.randint(1, 60, (length,)).tolist(), length - 2) for length in (5, 9, 14)]


def stirred(model, seed=3):
    """The adapter with random values, as if trained."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("loss_on", ["answer", "all"])
@pytest.mark.parametrize("method", PEFT_METHODS)
def test_the_loss_of_a_padded_batch_is_that_of_its_documents(tiny_llama, tmp_path, method, loss_on):
    """By hand: each document alone, without padding or `logits_to_keep`, its virtual tokens put in front by hand."""
    model = stirred(new_adapter(tiny_llama(), settings(method), ADAPTER, tmp_path))
    documents = rows()
    batch = Collator(0, loss_on)(documents)
    losses = []
    for document in documents:
        tokens = torch.tensor([document.tokens])
        with torch.no_grad():
            if method == "prompt-tuning":
                embeddings = model.get_base_model().get_input_embeddings()(tokens)
                prompt = model.prompt_encoder["default"].embedding.weight[None]
                whole = torch.cat([prompt, embeddings], 1)
                logits = model.get_base_model()(inputs_embeds=whole).logits[:, prompt.shape[1] :]
            else:
                logits = model(tokens).logits
        scores = logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).flatten()
        losses.append(-scores if loss_on == "all" else -scores[document.prompt_length - 1 :])
    with torch.no_grad():
        loss = model(**batch).loss
    assert loss.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_an_answer_does_not_depend_on_the_batch(tiny_llama, tmp_path, method):
    model = stirred(new_adapter(tiny_llama(), settings(method), ADAPTER, tmp_path))
    documents = [document.tokens for document in rows()]
    with torch.no_grad():
        together = model(**left_pad(documents, 0), logits_to_keep=1).logits[:, -1]
        alone = [model(**left_pad([tokens], 0), logits_to_keep=1).logits[0, -1] for tokens in documents]
        generated = model.generate(
            **left_pad(documents, 0), max_new_tokens=3, do_sample=False, pad_token_id=0
        )
        single = [
            model.generate(**left_pad([tokens], 0), max_new_tokens=3, do_sample=False, pad_token_id=0)[0, -3:]
            for tokens in documents
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)
    assert torch.equal(generated[:, -3:], torch.stack(single))


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_an_adapter_is_saved_loaded_and_continued(tiny_llama, tmp_path, method):
    model = stirred(new_adapter(tiny_llama(), settings(method), ADAPTER, tmp_path))
    save_weights(model, tmp_path / "adapter", "tiny", "float32", tmp_path)
    batch = left_pad([document.tokens for document in rows()], 0)
    with torch.no_grad():
        expected = model(**batch).logits
        loaded = load_adapter(tiny_llama(), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-6, rtol=1e-6)
        continued = continued_adapter(tiny_llama(), tmp_path / "adapter").eval()
        torch.testing.assert_close(continued(**batch).logits, expected, atol=1e-6, rtol=1e-6)

    def trained(model):
        return {name: p.shape for name, p in model.named_parameters() if p.requires_grad}

    assert trained(continued) == trained(model)
    assert len(weights_sha256(tmp_path / "adapter")) == 64


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_an_untrained_adapter_is_caught(tiny_llama, tmp_path, method):
    class Words:
        bos_token_id = eos_token_id = None
        pad_token_id = 0

        def __call__(self, text, **_):
            return type("Encoding", (), {"input_ids": [ord(letter) % 60 + 1 for letter in text]})

    model = new_adapter(tiny_llama(), settings(method), ADAPTER, tmp_path)
    if method != "prompt-tuning":  # its random virtual tokens act from the start
        with pytest.raises(MolaError, match="does not change the model's logits"):
            check_adapter_acts(model, Words(), "a prompt")
    check_adapter_acts(stirred(model), Words(), "a prompt")


def test_the_base_is_given_back_or_loaded_again(tiny_llama, tmp_path):
    batch = left_pad([document.tokens for document in rows()], 0)
    expected = tiny_llama()(**batch).logits
    for method in ("lora-r4", "lora-matched-2468", "mola-2468"):
        base = unload(stirred(new_adapter(tiny_llama(), settings(method), ADAPTER, tmp_path)))
        assert torch.equal(base(**batch).logits, expected)
    assert torch.equal(
        unload(new_adapter(tiny_llama(), *pissa("mola-2468"), tmp_path))(**batch).logits, expected
    )
    for model in (
        new_adapter(tiny_llama(), *pissa("lora-r4"), tmp_path),
        new_adapter(tiny_llama(), settings("prompt-tuning"), ADAPTER, tmp_path),
        new_adapter(tiny_llama(), settings("llama-adapter"), ADAPTER, tmp_path),
        tiny_llama(),
    ):
        assert unload(model) is None


@pytest.mark.parametrize("method", PISSA_METHODS)
def test_pissa_leaves_the_function_unchanged_and_saves_for_the_unmodified_base(tiny_llama, tmp_path, method):
    batch = left_pad([document.tokens for document in rows()], 0)
    chosen, adapter = pissa(method)
    model = new_adapter(tiny_llama(), chosen, adapter, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, tiny_llama()(**batch).logits, atol=1e-5, rtol=1e-5)
        stirred(model)
        expected = model(**batch).logits
        for place in ("first", "second"):  # saving does not disturb what is saved
            save_weights(model, tmp_path / place, "tiny", "float32", tmp_path)
        loaded = load_adapter(tiny_llama(seed=0), tmp_path / "second").eval()
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    assert weights_sha256(tmp_path / "first") == weights_sha256(tmp_path / "second")
    assert [name for name in model.peft_config] == ["default"]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(expected, tiny_llama()(**batch).logits, atol=1e-3, rtol=1e-3)


def test_pissa_experts_start_at_the_leading_directions_for_any_router(tiny_llama, tmp_path):
    base = tiny_llama()
    weight = base.model.layers[3].mlp.up_proj.weight.detach().clone()
    model = new_adapter(base, *pissa("mola-2468"), tmp_path).eval()
    layer = model.base_model.model.model.layers[3].mlp.up_proj
    assert layer.mola_router["default"].shape[0] == 8
    U, S, V = torch.linalg.svd(weight)
    best = U[:, :2] @ torch.diag(S[:2]) @ V[:2]
    A, B = layer.mola_A["default"], layer.mola_B["default"]
    for expert in range(8):
        own = slice(2 * expert, 2 * expert + 2)
        torch.testing.assert_close(2 * B[:, own] @ A[own], best, atol=1e-4, rtol=1e-3)
    assert not layer.mola_start_A["default"].requires_grad
    batch = left_pad([document.tokens for document in rows()], 0)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "mola_router"):
                module.mola_router["default"].copy_(3 * torch.randn_like(module.mola_router["default"]))
        torch.testing.assert_close(model(**batch).logits, tiny_llama()(**batch).logits, atol=1e-5, rtol=1e-5)


def test_pissa_experts_part_in_training(tiny_llama, tmp_path):
    model = new_adapter(tiny_llama(), *pissa("mola-2468"), tmp_path)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    layer = model.base_model.model.model.layers[3].self_attn.q_proj
    router = layer.mola_router["default"].detach().clone()
    frozen = layer.mola_start_B["default"].clone()
    batch = Collator(0, "all")(rows())
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    experts = layer.mola_B["default"].detach().unflatten(1, (8, 2)).transpose(0, 1)
    distances = torch.cdist(experts.flatten(1), experts.flatten(1))
    assert (distances[~torch.eye(8, dtype=torch.bool)] > 1e-4).all(), "no two experts are the same"
    assert not torch.equal(layer.mola_router["default"], router), "the router learns"
    assert torch.equal(layer.mola_start_B["default"], frozen)
    assert losses[-1] < losses[0]


def test_a_whole_model_is_trained_in_float32_and_saved_in_the_models_type(tiny_llama, tmp_path):
    base = tiny_llama().to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = whole_model(tmp_path / "base")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    save_weights(model, tmp_path / "same", "tiny", "bfloat16", tmp_path)
    with pytest.raises(MolaError, match="those of the base model"):
        check_model_differs(tmp_path / "same", tmp_path / "base")
    stirred(model)
    save_weights(model, tmp_path / "other", "tiny", "bfloat16", tmp_path)
    check_model_differs(tmp_path / "other", tmp_path / "base")
    assert all(p.dtype == torch.float32 for p in model.parameters()), "saving changes nothing"
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "other", dtype="auto")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, weight.bfloat16())


def test_names_of_pissa_variants_are_those_of_the_reference():
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    study = Study.model_validate(content | {"methods": ["base", "pissa-lora-r64", "pissa-mola-2468"]})
    labels = {method.label: method for method in study.methods[1:]}
    assert set(labels) <= set(reference.results()["method"])
    assert all(method.initialisation == "pissa" for method in labels.values())
    with pytest.raises(ValueError, match="initialisation pissa is for LoRA and MoLA"):
        Study.model_validate(content | {"methods": ["pissa-full"]})


def test_loading_an_adapter_without_its_start_is_refused(tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    model = stirred(new_adapter(tiny_llama(), *pissa("mola-2468"), tmp_path))
    save_weights(model, tmp_path / "adapter", "tiny", "float32", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "mola_start_A" not in name}
    save_file(tensors, file)
    with pytest.raises(ValueError, match="mola_start_A.* is missing"):
        PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "adapter"))


def test_an_answer_ends_only_with_a_token_for_it():
    class Words:
        bos_token_id = eos_token_id = None

        def __call__(self, text, **_):
            return type("Encoding", (), {"input_ids": [ord(letter) % 60 + 1 for letter in text]})

    assert len(encode(Words(), "a prompt", " yes", 64).tokens) == len("a prompt yes")
    for call in (
        lambda: encode(Words(), "a prompt", " yes", 64, end=True),
        lambda: encode_text(Words(), "a", 64),
    ):
        with pytest.raises(ValueError, match="no end-of-text token"):
            call()


def test_an_output_layer_that_is_tied_is_no_target(tiny_llama, tmp_path):
    adapter = ADAPTER.model_copy(update={"target_modules": ["q_proj", "lm_head"]})
    with pytest.raises(MolaError, match="target_modules: the output layer shares its weights"):
        new_adapter(tiny_llama(tie_word_embeddings=True), settings("lora-r4"), adapter, tmp_path)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_nor_is_it_saved_whole(tiny_llama, tmp_path, saved):
    """lm-evaluation-harness ties it again, and would evaluate another model than was trained."""
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "modules_to_save": saved}
    method = MethodSettings(method="peft", name="mine", config=config)
    with pytest.raises(MolaError, match="mine: .*modules_to_save: the output layer shares its weights"):
        new_adapter(tiny_llama(tie_word_embeddings=True), method, ADAPTER, tmp_path)
    new_adapter(tiny_llama(tie_word_embeddings=False), method, ADAPTER, tmp_path)


def test_lora_on_the_experts_of_a_mixture_is_not_compared_with_mola_beside_them(tmp_path):
    """PEFT moves a LoRA on `up_proj` to the fused experts, also where a dense layer has an `up_proj` of its own."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen3MoeConfig(
        **sizes, num_key_value_heads=2, head_dim=8, vocab_size=64, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, mlp_only_layers=[0],
    )  # fmt: skip
    plain = ADAPTER.model_copy(update={"dropout": 0.0})
    with pytest.raises(
        MolaError,
        match=r"lora-r4: .*target_modules: PEFT adapts .* instead of .*layers\.0\.mlp\..* for all methods$",
    ):
        new_adapter(Qwen3MoeForCausalLM(config), settings("lora-r4"), plain, tmp_path)
    attention = plain.model_copy(update={"target_modules": ["q_proj", "v_proj"]})
    new_adapter(Qwen3MoeForCausalLM(config), settings("lora-r4"), attention, tmp_path)
