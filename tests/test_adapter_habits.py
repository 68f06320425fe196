"""The adapter in its users' habits: losses made elsewhere, encoder-decoders, mixed batches, threads, offloading."""

import copy
import pickle
import sys
import threading
from collections import OrderedDict

import accelerate
import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from reference import balance_loss, loop_over_experts
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from mola_core.adapter import MolaConfig, MolaLinear, built_shape, count_parameters

IDS = torch.randint(0, 64, (3, 7), generator=torch.Generator().manual_seed(1))


def adapted(base, **settings):
    torch.manual_seed(0)
    settings = {"num_experts": 3, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.0} | settings
    return get_peft_model(base, MolaConfig(**{"init_lora_weights": False} | settings))


def router_gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "mola_router" in n])


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_balance_loss_is_there_where_the_loss_is_computed_outside(tiny_llama, reentrant):
    found = []
    for coefficient in (0.0, 0.5):
        model = adapted(tiny_llama(), router_aux_loss_coef=coefficient).train()
        inside = router_gradient(model, model(input_ids=IDS, labels=IDS).loss)
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        logits = model(input_ids=IDS).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
        outside = router_gradient(model, loss)
        torch.testing.assert_close(outside, inside, rtol=1e-3, atol=1e-6)
        found.append(outside)
    assert not torch.allclose(*found, atol=1e-4)


def test_rows_of_a_mixed_batch_use_their_own_adapter(tiny_llama):
    model = adapted(tiny_llama())
    torch.manual_seed(5)
    model.add_adapter("b", MolaConfig(num_experts=2, target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    alone = []
    for name in ("default", "b"):
        model.set_adapter(name)
        alone.append(model(input_ids=IDS).logits)
    with model.disable_adapter():
        alone.append(model(input_ids=IDS).logits)
    mixed = model(input_ids=IDS, adapter_names=["default", "b", "__base__"]).logits
    for row in range(3):
        torch.testing.assert_close(mixed[row], alone[row][row], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="non-existing"):
        model(input_ids=IDS, adapter_names=["c"] * 3)


def test_plain_module_zero_tokens_and_read_only_inputs():
    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), MolaConfig(target_modules=["0"], router_aux_loss_coef=0.1)
    )
    assert model(torch.empty(2, 0, 4)).shape == (2, 0, 4)
    x = torch.randn(5, 4)
    version = x._version
    model.train()(x)
    assert x._version == version
    assert model.get_model_status().peft_types == {"default": "MOLA"}


def test_shape_per_module_and_rank_per_layer_are_built_and_counted(tiny_llama, tmp_path):
    config = {"num_experts": {"q_proj": [2, 3, 4, 5], "down_proj": 2}, "r": [1, 2, 3, 4]}
    model = adapted(tiny_llama(), **config)
    shape = built_shape(model)
    assert [v for k, v in shape.items() if "q_proj" in k] == [(2, 1), (3, 2), (4, 3), (5, 4)]
    dims = {"q_proj": (32, 32), "down_proj": (48, 32)}
    assert model.get_nb_trainable_parameters()[0] == count_parameters(model.peft_config["default"], dims, 4)
    some = adapted(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[1, 3])
    counted = count_parameters(some.peft_config["default"], {"q_proj": (32, 32)}, 4)
    assert some.get_nb_trainable_parameters()[0] == counted
    one = {"num_experts": {"q_proj": 2, "layers.3.self_attn.q_proj": 8}}
    for other in (one, {"exclude_modules": ["layers.0.self_attn.q_proj"]}):
        with pytest.raises(ValueError, match="no closed form; count the parameters"):
            count_parameters(MolaConfig(target_modules=["q_proj"], **other), {"q_proj": (32, 32)}, 4)
    with pytest.raises(ValueError, match="layers_to_transform is empty"):
        MolaConfig(target_modules=["q_proj"], layers_to_transform=[])
    model.save_pretrained(tmp_path)
    loaded = MolaConfig.from_pretrained(tmp_path)
    assert loaded.num_experts == config["num_experts"] and loaded.r == config["r"]
    card = (tmp_path / "README.md").read_text()
    assert "import mola_core" in card and "q_proj" in card
    with pytest.raises(ValueError, match="not found among"):
        adapted(tiny_llama(), num_experts={"q_proj": 2, "down_proj": 2, "quux": 2})


# ---- the balance loss, against its formula computed from the modules' inputs ----------------------------------


def balance_of(model, forward, block_of, top_k=2):
    """The balance loss of `forward()` by its formula: from what each module was given, in autograd, pooled by block."""
    routed, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, MolaLinear):

            def record(module, args, name=name):
                weights = module.mola_A["default"], module.mola_B["default"], module.mola_router["default"]
                _, probabilities, chosen = loop_over_experts(args[0], *weights, top_k, 1.0)
                routed.setdefault(block_of(name), []).append((probabilities, chosen))

            handles.append(module.register_forward_pre_hook(record))
    forward()
    for handle in handles:
        handle.remove()
    losses = []
    for block in routed.values():
        losses.append(balance_loss(*(list(column) for column in zip(*block, strict=True))))
    return torch.stack(losses).sum()


def by_layer(name):
    parts = name.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit()) + 1])


def encoder_decoder(kind):
    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
        return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)), [
            "q",
            "k",
            "v",
            "wi",
            "wo",
        ]
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 64}
    heads = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
    }
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, decoder_start_token_id=2))
    return model, ["q_proj", "k_proj", "v_proj", "fc1", "fc2"]


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_balance_loss_of_an_encoder_decoder(kind, checkpointing):
    """Encoder and decoder read different tokens, and cross-attention's keys and values the encoder's."""
    base, targets = encoder_decoder(kind)
    model = adapted(base, target_modules=targets, router_aux_loss_coef=0.5).eval()
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(2))
    inputs = {"input_ids": ids, "labels": ids[:, :4].clone()}
    model.peft_config["default"].router_aux_loss_coef = 0.0
    model.zero_grad()
    balance = balance_of(model, lambda: model(**inputs), by_layer)
    plain = model(**inputs).loss
    (plain + 0.5 * balance).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.peft_config["default"].router_aux_loss_coef = 0.5
    if checkpointing is not None:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    torch.testing.assert_close(loss, plain + 0.5 * balance)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("passes", [1, 2], ids=["whole", "accumulated"])
def test_label_smoothing_in_a_trainer(tiny_llama, tmp_path, passes):
    """The loss is computed outside of the model; one step of SGD shows the whole gradient."""
    coefficient, rate = 0.5, 0.1
    ids = torch.randint(0, 64, (4, 7), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[:, :4] = -100
    trained = []
    for value in (0.0, coefficient):
        model = adapted(tiny_llama(), router_aux_loss_coef=value)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4 // passes,
            gradient_accumulation_steps=passes,
            learning_rate=rate,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0,
            label_smoothing_factor=0.1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        )
        rows = [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        trained.append({n: (b - model.get_parameter(n)) / rate for n, b in before.items()})
    model = adapted(tiny_llama())
    balances = [balance_of(model, lambda i=i: model(input_ids=i), by_layer) for i in ids.chunk(passes)]
    torch.stack(balances).mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            added = (trained[1][name] - trained[0][name]).detach()
            torch.testing.assert_close(added, coefficient * parameter.grad, rtol=1e-2, atol=2e-5, msg=name)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_add_adapter_of_transformers(tiny_llama, reentrant):
    base = tiny_llama()
    config = MolaConfig(
        num_experts=3, target_modules=["q_proj", "down_proj"], lora_dropout=0.0, init_lora_weights=False
    )
    torch.manual_seed(0)
    base.add_adapter(config)
    base.train()
    plain = base(input_ids=IDS, labels=IDS).loss
    balance = balance_of(base, lambda: base(input_ids=IDS), by_layer)
    expected = router_gradient(base, plain + 0.5 * balance)
    base.peft_config["default"].router_aux_loss_coef = 0.5  # raised after the injection
    if reentrant is not None:
        base.enable_input_require_grads()
        base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss = base(input_ids=IDS, labels=IDS).loss
    torch.testing.assert_close(loss, plain + 0.5 * balance)
    torch.testing.assert_close(router_gradient(base, loss), expected, rtol=1e-3, atol=1e-6)


def test_second_order_of_the_balance_loss(tiny_llama):
    """A gradient penalty: the gradient of the squared gradient's norm, where the loss is part of a larger one."""
    model = adapted(
        tiny_llama(num_hidden_layers=1, attn_implementation="eager").double(), router_aux_loss_coef=0.5
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    def penalty(loss):
        first = torch.autograd.grad(loss**2, parameters, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), parameters)

    found = penalty(model(input_ids=IDS, labels=IDS).loss)
    model.peft_config["default"].router_aux_loss_coef = 0.0
    balance = balance_of(model, lambda: model(input_ids=IDS), by_layer)
    expected = penalty(model(input_ids=IDS, labels=IDS).loss + 0.5 * balance)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


# ---- what is the caller's, and copies --------------------------------------------------------------------------


def test_read_only_input_is_read_only(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32))
    held = np.load(file, mmap_mode="r")
    with pytest.warns(UserWarning, match="not writable"):
        x = torch.from_numpy(held)
    model = get_peft_model(
        nn.Sequential(nn.Linear(8, 8)),
        MolaConfig(target_modules=["0"], lora_dropout=0.5, init_lora_weights=False),
    )
    model.train()(x).sum().backward()
    np.testing.assert_array_equal(np.load(file), held)


def in_threads(task, count=4):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=task, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)


def test_threads_share_a_model(tiny_llama):
    """Each has its own balance loss, forward and backward, where layers are computed again too."""
    model = adapted(tiny_llama(), router_aux_loss_coef=0.5).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    routers = [p for n, p in model.named_parameters() if "mola_router" in n]
    found = {}

    def train(i):
        for _ in range(6):
            loss = model(input_ids=IDS[:, : 3 + i], labels=IDS[:, : 3 + i]).loss
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, routers)])
            found.setdefault(i, []).append(torch.cat([loss.detach()[None], gradient]))

    for i in range(4):
        train(i)
    expected = {i: values[0] for i, values in found.items()}
    found.clear()
    in_threads(train)
    for i, values in found.items():
        for value in values:
            torch.testing.assert_close(value, expected[i], rtol=1e-4, atol=1e-6)
    assert [len(values) for values in found.values()] == [6] * 4


def test_threads_share_an_input(tiny_llama):
    model = adapted(tiny_llama(), lora_dropout=0.5).train()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    in_threads(lambda _: [layer(x) for _ in range(50)])
    assert torch.equal(x, before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_on_its_own(tiny_llama, how):
    model = adapted(tiny_llama(), router_aux_loss_coef=0.5)
    expected = router_gradient(model, model(input_ids=IDS, labels=IDS).loss)
    model(input_ids=IDS)  # its pass is still open
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(router_gradient(other, other(input_ids=IDS, labels=IDS).loss), expected)
    other.peft_config["default"].router_aux_loss_coef = 0.0
    assert not torch.allclose(router_gradient(other, other(input_ids=IDS, labels=IDS).loss), expected)
    torch.testing.assert_close(router_gradient(model, model(input_ids=IDS, labels=IDS).loss), expected)


def test_hooks_on_every_module_see_what_stays(tiny_llama):
    """A hook may keep an output; nothing changes it afterwards, neither a forward nor a backward pass."""
    model = adapted(tiny_llama(), router_aux_loss_coef=0.5, lora_dropout=0.5).train()
    kept = []

    def keep(module, inputs, output):
        for tensor in (*inputs, output):
            if isinstance(tensor, torch.Tensor):
                kept.append((tensor, tensor.detach().clone()))

    handle = nn.modules.module.register_module_forward_hook(keep)
    try:
        model(input_ids=IDS, labels=IDS).loss.backward()
    finally:
        handle.remove()
    assert len(kept) > 50
    assert all(torch.equal(tensor, then) for tensor, then in kept)


# ---- transformers' own loader ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, "pissa"])
@pytest.mark.parametrize("load", ["load_adapter", "from_pretrained"])
def test_transformers_own_loader(tiny_llama, tmp_path, load, start):
    """A whole adapter works; one that lacks a tensor is refused where it is used, as the loader only warns."""
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = adapted(base, init_lora_weights=start)
    for name, parameter in model.named_parameters():
        if "mola_B" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.eval()(input_ids=IDS).logits

    def loaded():
        if load == "from_pretrained":
            return AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        base.load_adapter(str(tmp_path / "adapter"))
        return base

    torch.testing.assert_close(loaded()(input_ids=IDS).logits, expected)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop("base_model.model.model.layers.2.mlp.down_proj.mola_router")
    save_file(tensors, file)
    with pytest.raises(ValueError, match="layers.2.mlp.down_proj.mola_router"):
        loaded()(input_ids=IDS)


# ---- compilers and offloading ----------------------------------------------------------------------------------


class Stack(nn.Module):
    """Two layers that return a loss, which a compiler traces sooner than a language model."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(OrderedDict(up=nn.Linear(8, 8), act=nn.Tanh())) for _ in range(2)
        )

    def forward(self, x, labels):
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(x, labels), x


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_compiled_forward_and_training_step(coefficient):
    torch.manual_seed(1)
    model = adapted(Stack(), target_modules=["up"], router_aux_loss_coef=coefficient)
    x, labels = torch.randn(5, 8), torch.arange(5)
    with torch.no_grad():
        expected = model(x, labels=labels)
    gradient = router_gradient(model, model(x, labels=labels)[0])
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, labels=labels), expected)
    torch.testing.assert_close(router_gradient(model, compiled(x, labels=labels)[0]), gradient)
    torch._dynamo.reset()


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload"])
def test_offloaded_by_accelerate(tiny_llama, tmp_path, offload):
    model = adapted(tiny_llama(), router_aux_loss_coef=0.5).eval()
    expected = model(input_ids=IDS, labels=IDS)
    if offload == "cpu_offload":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert next(iter(model.parameters())).is_meta
    with torch.no_grad():
        output = model(input_ids=IDS, labels=IDS)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)


def test_only_some_layers(tiny_llama, tmp_path):
    """Lists still have an entry for every layer of the model."""
    config = {"num_experts": [2, 3, 4, 5], "r": [1, 2, 3, 4], "layers_to_transform": [0, 3]}
    for targets in (["q_proj"], "all-linear"):
        model = adapted(tiny_llama(), target_modules=targets, **config)
        shape = built_shape(model)
        assert {(int(name.split(".")[4]), *found) for name, found in shape.items()} == {(0, 2, 1), (3, 5, 4)}
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
        torch.testing.assert_close(loaded(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_balance_loss_of_an_inner_model_is_no_part_of_a_call_that_ended(tiny_llama, reentrant):
    """A loss computed in parts calls the model below the output layer, after generation or a scaled loss as at first."""
    model = adapted(tiny_llama(), router_aux_loss_coef=0.5, router_aux_loss_mask_padding=True).train()
    expected = router_gradient(model, model(input_ids=IDS, labels=IDS).loss)
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inner = model.base_model.model
    before = (
        lambda: None,
        lambda: model.generate(input_ids=IDS[:1], attention_mask=torch.ones_like(IDS[:1]), max_new_tokens=2),
        lambda: (model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss * 100).backward(),
    )
    for call in before:
        call()
        for _ in range(2):
            logits = inner.lm_head(inner.model(input_ids=IDS)[0])[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
            torch.testing.assert_close(router_gradient(model, loss), expected, rtol=1e-3, atol=1e-6)


def test_a_balance_loss_that_is_not_added_is_told(tiny_llama):
    model = adapted(tiny_llama(), router_aux_loss_coef=0.5).train()
    loss = model(input_ids=IDS).logits.mean()
    with model.disable_adapter(), torch.no_grad():
        model(input_ids=IDS)
    with pytest.warns(UserWarning, match="no router ran in the last forward pass"):
        assert model.base_model.add_balance_loss(loss) is loss


@pytest.mark.parametrize("key", ["exclude_modules", "modules_to_save"])
def test_names_that_name_nothing_are_refused(tiny_llama, key):
    with pytest.raises(ValueError, match=f"{key}: 'v_porj' is no module"):
        adapted(tiny_llama(), **{key: ["v_porj"]})


def test_another_adapter_leaves_the_balance_loss_of_layers_that_are_not_called(tiny_llama):
    """Each module then counts for its share of the layer's: of the modules that its own adapter has."""

    def balance(model):
        hidden = model.base_model.model.model.embed_tokens(torch.arange(8)[None])
        for module in model.modules():
            if isinstance(module, MolaLinear) and "default" in module.mola_router:
                module(hidden)
        return float(model.base_model.balance.here.last.value)

    model = adapted(tiny_llama(), target_modules=["q_proj", "v_proj"], router_aux_loss_coef=0.5)
    alone = balance(model)
    model.add_adapter("other", MolaConfig(target_modules=["q_proj", "v_proj", "k_proj"], num_experts=4))
    assert balance(model) == pytest.approx(alone)
    model.delete_adapter("other")
    assert balance(model) == pytest.approx(alone) and alone > 0
