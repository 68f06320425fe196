"""The tuner: puts MoLA layers into a model, adds the balance loss, and refuses incomplete adapters."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, cast

from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .balance_loss import BalanceLoss
from .config import MolaConfig
from .layer import MolaLayer, MolaLinear
from .shape import block_of, built_shape, experts_and_rank


class MolaModel(BaseTuner):
    """A model whose target modules carry LoRA experts, layer by layer as `MolaConfig.num_experts` says.

    Raises:
        ValueError: the config does not fit the model: a list has not one entry for each layer, a name of num_experts
            is no target module's, or a target module is not there or is not a linear layer.
    """

    prefix = "mola_"
    tuner_layer_cls = MolaLayer
    # PEFT types it by lists, its own table has other sequences.
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    balance: BalanceLoss

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT does it; then reads back what was built and compares it with what was asked for."""
        # Adapters that are added one by one, as transformers' `add_adapter` does, share the balance loss.
        found = (module.balance for module in model.modules() if isinstance(module, MolaLayer))
        self.balance = next(found, None) or BalanceLoss()
        config = cast("MolaConfig", self.peft_config[adapter_name])
        self.balance.configs[adapter_name] = config
        self.balance.forget(adapter_name)
        self.balance.watch_model(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        shape = built_shape(model, adapter_name)
        for name, built in shape.items():
            asked = experts_and_rank(config, name, *block_of(model, name)[1:])
            if built != asked:
                raise ValueError(f"{name} has experts and rank {built}, asked for were {asked}")
        only = config.layers_to_transform
        if only is not None:
            adapted = {block_of(model, name)[1] for name in shape}
            absent = [layer for layer in ([only] if isinstance(only, int) else only) if layer not in adapted]
            if absent:
                raise ValueError(
                    f"layers_to_transform {absent}: the model has no target modules in such layers"
                )
        if isinstance(config.num_experts, dict):
            unused = _absent(config.num_experts, shape)
            if unused:
                raise ValueError(f"num_experts {unused} not found among the target modules")

    # A tuner's methods get its own config, which PEFT's base class cannot say.
    def _prepare_model(self, peft_config: MolaConfig, model: nn.Module) -> None:  # type: ignore[override]
        """PEFT is silent when only some of the names are found; a misspelt one would go untrained."""
        names = [name for name, _ in model.named_modules()]
        for key in ("exclude_modules", "modules_to_save"):
            entries = getattr(peft_config, key) or []
            absent = [] if isinstance(entries, str) else _absent(entries, names)
            if absent:
                raise ValueError(f"{key}: {absent[0]!r} is no module of the base model")
        targets = peft_config.target_modules
        if targets is None or isinstance(targets, str):
            return  # a regular expression or "all-linear"; PEFT raises where it finds nothing
        missing = sorted(_absent(targets, names))
        if missing:
            known = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if _is_linear(m)})
            raise NoMatchingPeftModuleError(
                f"Target modules {missing} not found in the base model: its linear modules are {', '.join(known)}"
            )

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: MolaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, MolaLayer) else target
        if not _is_linear(base):
            raise ValueError(
                f"target module {current_key} is a {type(base).__name__}: name linear layers in target_modules"
            )
        block, layer, layers = block_of(self.model, current_key)
        experts, rank = experts_and_rank(peft_config, current_key, layer, layers)
        encoder_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        if peft_config.router_aux_loss_mask_padding and encoder_decoder:
            raise ValueError(
                "router_aux_loss_mask_padding cannot tell the padding of encoder and decoder apart: turn it off"
            )
        self.balance.members.setdefault((block, adapter_name), set()).add(current_key)
        if layer is not None and block != current_key:
            self.balance.watch_layer(self.model.get_submodule(block), block)
        if isinstance(target, MolaLayer):
            target.update_layer(adapter_name, peft_config, experts, rank)
            return
        new = MolaLinear(target, adapter_name, peft_config, experts, rank, current_key, block, self.balance)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def add_balance_loss(self, loss: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """`loss` plus `share` times the balance loss of the last forward pass, for a loss computed outside the model.

        Without it the balance loss's gradient is there all the same, but not scaled as `loss` is afterwards, and its
        value is not part of `loss`. Returns `loss` itself where there is none to add, or where it has been added.
        """
        return self.balance.add(loss, share)

    def unload(self) -> nn.Module:
        """The base model, without the adapters and without a trace of them."""
        self.balance.unwatch(self.model)
        return super().unload()

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hands `adapter_names`, the adapter of each row of the batch, to the layers while the context lasts.

        Raises ValueError in training mode, and for an adapter that is not there.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted(set(names) - {"__base__"} - self.peft_config.keys())
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        beams = kwargs.get("num_beams") or 1
        repeated = [name for name in names for _ in range(beams)]
        encoder = self.model.get_encoder() if beams > 1 and hasattr(self.model, "get_encoder") else None
        once = set() if encoder in (None, self.model) else set(encoder.modules())  # before the beams part
        handles = [
            module.register_forward_pre_hook(
                partial(_name_adapters, names=names if module in once else repeated), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, MolaLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_merge_allowed(self) -> NoReturn:
        MolaLayer.merge(cast("MolaLayer", self))

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: MolaConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """PEFT only warns of a missing tensor and drops one that it does not know; both are errors here.

        Raises ValueError that names the tensors that are missing, not the adapter's, or of another shape.
        """
        loaded = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        prefix = "base_model.model."
        own = {
            f"{name}.{part}.{adapter_name}": getattr(module, part)[adapter_name]
            for name, module in model.named_modules()
            if isinstance(module, MolaLayer)
            for part in (*module.adapter_layer_names, *module.frozen_names)
            if adapter_name in getattr(module, part)
        }
        known = own.keys() | model.state_dict().keys()
        problems = {
            "is missing": [key for key in own if key not in loaded],
            "is not part of this adapter": [
                key for key in loaded if key not in known and key.removeprefix(prefix) not in known
            ],
        }
        for problem, keys in problems.items():
            if keys:
                more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
                raise ValueError(f"adapter {adapter_name!r}: tensor {keys[0]}{more} {problem}: {_RELOAD}")
        for key, parameter in own.items():
            if loaded[key].shape != parameter.shape:
                raise ValueError(
                    f"adapter {adapter_name!r}: tensor {key} has shape {tuple(loaded[key].shape)}, "
                    f"not {tuple(parameter.shape)}: {_RELOAD}"
                )
        return loaded


_RELOAD = (
    "load the tensors that were saved with this adapter_config.json, onto the base model they were trained on"
)


def _absent(entries: Iterable[str], names: Collection[str]) -> list[str]:
    """Entries that are neither a module's name nor the end of one, as PEFT matches a list."""
    return [entry for entry in entries if not any(f".{name}".endswith(f".{entry}") for name in names)]


def _is_linear(module: nn.Module) -> bool:
    """Linear layers of torch and of the quantisation libraries, which all name their two sizes, and GPT-2's."""
    return isinstance(module, nn.Linear | Conv1D) or (
        hasattr(module, "in_features") and hasattr(module, "out_features")
    )


def _name_adapters(module: nn.Module, args: tuple, kwargs: dict[str, Any], names: list[str]) -> tuple:
    return args, kwargs | {"adapter_names": names}
