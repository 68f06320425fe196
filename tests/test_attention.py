"""Attention by two batched products is what the fused kernel computes, gradients included; under autocast it is in float32."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mola_core.models import attention, kernels
from mola_core.models.tokens import Encoded
from mola_core.training.batches import Collator, Packer


@pytest.fixture(autouse=True)
def as_before():
    yield
    attention.install("fused")
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def module():
    return SimpleNamespace(is_causal=True, num_key_value_groups=2, training=True)


def inputs(rows=3, queries=7, keys=7, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(rows, 4, queries, 8), (rows, 2, keys, 8), (rows, 2, keys, 8)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def padded(queries=7, keys=7):
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(3, 1, 1, 1)
    mask[1, ..., :3] = False  # left padding; rows of queries that see nothing
    return mask


MASKS = {
    "causal": lambda: None,
    "boolean": padded,
    "added": lambda: torch.zeros(3, 1, 7, 7).masked_fill(~padded(), torch.finfo(torch.float32).min),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_products_are_what_the_fused_kernel_computes(module, mask, scaling):
    given, results = MASKS[mask](), []
    seen = slice(None) if given is None else padded()[:, 0].any(-1)
    for function in (sdpa_attention_forward, attention.attention):
        attention.install("products")
        tensors = inputs()
        output = function(module, *tensors, given, scaling=scaling, dropout=0.0)[0]
        assert output.shape == (3, 7, 4, 8) and output.isfinite().all()
        output[seen].square().sum().backward()  # what padding gets is read by nothing
        results.append((output[seen], [each.grad for each in tensors]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_queries_after_a_cache(module):
    tensors, mask = inputs(queries=2, keys=7), padded(2, 7)
    expected = sdpa_attention_forward(module, *tensors, mask)[0]
    attention.install("products")
    torch.testing.assert_close(attention.attention(module, *tensors, mask)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["fused", "products"])
def test_under_autocast_it_is_computed_in_float32(module, kernel):
    attention.install(kernel)
    tensors = [each.detach() for each in inputs(dtype=torch.bfloat16)]
    exact = sdpa_attention_forward(module, *[each.double() for each in tensors], None)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attention.attention(module, *tensors, None)[0]
        plain = sdpa_attention_forward(module, *tensors, None)[0]
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16()), "rounded once, at the end"
    assert not torch.equal(plain, ours)


def test_dropout_and_large_batches_are_left_to_the_fused_kernel(module, monkeypatch):
    attention.install("products")
    monkeypatch.setattr(attention, "products", lambda *_: pytest.fail("not here"))
    with pytest.raises(pytest.fail.Exception):
        attention.attention(module, *inputs(), None)
    attention.attention(module, *inputs(), None, dropout=0.1)
    monkeypatch.setattr(attention, "MAX_SCORES", 3 * 4 * 7 * 7 - 1)
    attention.attention(module, *inputs(), None)


def test_a_model_takes_the_kernel_that_was_chosen(tiny_llama, monkeypatch):
    model, ids = tiny_llama(), torch.arange(10).unsqueeze(0)
    expected, calls = model(ids).logits, []
    plain = attention.products
    monkeypatch.setattr(attention, "products", lambda *given: (calls.append(1), plain(*given))[1])
    attention.install("products")
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == model.config.num_hidden_layers


@pytest.mark.parametrize(("fused", "products", "taken"), [(10.0, 4.0, "products"), (10.0, 9.0, "fused")])
def test_attention_is_chosen_where_onednn_is(monkeypatch, fused, products, taken):
    entry = {"error": 5e-7}
    monkeypatch.setattr(
        kernels,
        "measure",
        lambda sizes: {
            name: entry | {"milliseconds": ms}
            for name, ms in (("default", 9.0), ("onednn", 4.0), ("bf16", 2.0))
        },
    )
    monkeypatch.setattr(
        attention,
        "measure",
        lambda *_: {"fused": entry | {"milliseconds": fused}, "products": entry | {"milliseconds": products}},
    )
    record = kernels.choose("auto", kernels.Counter({(256, 192): 8}), (4, 8))
    assert record["attention"] == taken == attention._kernel
    assert record["measured"]["attention, fused"]["milliseconds"] == fused
    record = kernels.choose("default", kernels.Counter({(256, 192): 8}), (4, 8))
    assert record["attention"] == "fused" == attention._kernel


def test_measuring_attention_gives_both_kernels():
    found = attention.measure(2, 8)
    assert set(found) == {"fused", "products"}
    assert all(entry["error"] <= kernels.MAX_ERROR and entry["milliseconds"] > 0 for entry in found.values())


@pytest.mark.parametrize(("shared", "lengths"), [(3, (4, 1, 2)), (0, (2, 5)), (4, (3,)), (1, (1, 1))])
def test_packed_documents_are_what_their_mask_says(module, shared, lengths):
    packed = attention.Packed(shared, lengths)
    owner = torch.tensor([0] * shared + [i for i, length in enumerate(lengths, 1) for _ in range(length)])
    mask = ((owner.unsqueeze(1) == owner) | (owner == 0)).tril()[None, None]
    results = []
    for function, options in (
        (sdpa_attention_forward, {}),
        (attention.attention, {"packed": packed}),
    ):
        tensors = inputs(1, packed.length, packed.length)
        output = function(module, *tensors, mask, scaling=0.3, **options)[0]
        assert output.shape == (1, packed.length, 4, 8)
        (output * torch.linspace(0, 1, output.numel()).view_as(output)).sum().backward()
        results.append([output, *(each.grad for each in tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


def test_packed_rows_are_not_computed_under_a_mask(tiny_llama, monkeypatch):
    """What `Packer` makes reaches the attention of every layer."""
    attention.install("fused")
    calls, plain = [], attention.of_packed
    monkeypatch.setattr(attention, "of_packed", lambda *given: (calls.append(given[3]), plain(*given))[1])
    model, documents = tiny_llama(), [Encoded([1, 2, 3, 4], 3), Encoded([1, 2, 5], 2)]
    loss = model(**Packer()(documents), use_cache=False).loss
    assert calls == [attention.Packed(1, (3, 2))] * model.config.num_hidden_layers
    torch.testing.assert_close(loss, model(**Collator(0, "answer")(documents), use_cache=False).loss)


@pytest.mark.parametrize(
    "unusual", [{"dropout": 0.1}, {"softcap": 30.0}, {"position_bias": torch.ones(1, 1, 7, 7)}]
)
def test_what_is_not_computed_here_is_left_to_transformers(module, monkeypatch, unusual):
    """Its attention by PyTorch refuses what it cannot do; ours must not leave it out silently."""
    attention.install("products")
    for name in ("products", "of_packed"):
        monkeypatch.setattr(attention, name, lambda *_: pytest.fail("left out"))
    given = (module, *inputs(1), None)
    packed = attention.Packed(3, (4,))
    if "softcap" in unusual:
        with pytest.raises(ValueError, match="softcap"):
            attention.attention(*given, packed=packed, **unusual)
    else:
        attention.attention(*given, packed=packed, **unusual)
