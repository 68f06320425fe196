"""The tuner: puts MoLA layers into a model, adds the balance loss, and refuses incomplete adapters."""

from typing import Any, NoReturn

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import MolaConfig
from .layer import MolaLayer, MolaLinear, SharedInput
from .routing import BalanceLoss

IGNORED = -100
"""Label of a token without loss (PyTorch's `ignore_index`)."""
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
"""Names of modules that read the same tensor, in the order of their calls, where they have the same parent."""


class MolaModel(BaseTuner):
    """A model whose target modules carry LoRA experts, layer by layer as `MolaConfig.num_experts` says.

    Raises:
        ValueError: the config does not fit the model: the list of experts has not one entry for each layer, or a
            target module is not there or is not a linear layer.
    """

    prefix = "mola_"
    tuner_layer_cls = MolaLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    balance: BalanceLoss
    shared_inputs: dict[str, SharedInput]

    def _pre_injection_hook(self, model: nn.Module, config: MolaConfig, adapter_name: str) -> None:
        self.balance = BalanceLoss()
        self.shared_inputs = {}

    def _prepare_model(self, peft_config: MolaConfig, model: nn.Module) -> None:
        """PEFT is silent when only some of the names are found; a misspelt one would go untrained."""
        targets = peft_config.target_modules
        if isinstance(targets, str):
            return  # a regular expression or "all-linear"; PEFT raises where it finds nothing
        names = [name for name, _ in model.named_modules()]
        missing = sorted(t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names))
        if missing:
            known = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if _is_linear(m)})
            raise ValueError(
                f"target_modules {missing} not found in the base model: its linear modules are {', '.join(known)}"
            )

    def _create_and_replace(
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
        block, experts = self._block_and_experts(peft_config, current_key)
        if isinstance(target, MolaLayer):
            target.update_layer(adapter_name, peft_config, experts)
            return
        shared = self._shared_input(current_key)
        layer = MolaLinear(
            target, adapter_name, peft_config, experts, current_key, block, self.balance, shared
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _shared_input(self, key: str) -> SharedInput:
        """The modules that read the same input as module `key`: one object for all of them."""
        parent, _, name = key.rpartition(".")
        for group in SAME_INPUT:
            if name in group:
                return self.shared_inputs.setdefault(f"{parent}.{group}", SharedInput(group))
        return SharedInput()

    def _block_and_experts(self, config: MolaConfig, key: str) -> tuple[str, int]:
        """The layer of the model that holds module `key`, and the number of its experts.

        The layers are the entries of the outermost `ModuleList` on the way to the module.
        """
        parts = key.split(".")
        for end in range(len(parts)):
            blocks = self.model.get_submodule(".".join(parts[:end]))
            if isinstance(blocks, nn.ModuleList):
                break
        else:
            if isinstance(config.num_experts, int):
                return key, config.num_experts
            raise ValueError(
                f"target module {key} is in no layer of the model, so num_experts has no entry for it: "
                f"leave it out of target_modules or give num_experts as a single number"
            )
        block = ".".join(parts[: end + 1])
        if isinstance(config.num_experts, int):
            return block, config.num_experts
        if len(config.num_experts) != len(blocks):
            raise ValueError(
                f"num_experts has {len(config.num_experts)} entries, the model has {len(blocks)} layers: "
                f"give one number for each layer"
            )
        return block, config.num_experts[int(parts[end])]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward; with `router_aux_loss_coef` its loss includes the balance loss.

        With `num_items_in_batch`, as the Trainer gives it where several passes make one batch, the balance loss is
        weighted by the pass's share of the batch's loss tokens, as the loss itself is: the coefficient means the same
        however a batch is cut.
        """
        if not any(self.peft_config[name].router_aux_loss_coef > 0 for name in self.active_adapters):
            return self.model(*args, **kwargs)
        with self.balance.watch(kwargs.get("attention_mask")):
            outputs = self.model(*args, **kwargs)
        labels, items = kwargs.get("labels"), kwargs.get("num_items_in_batch")
        share = 1.0 if labels is None or items is None else (labels != IGNORED).sum() / items
        if isinstance(getattr(outputs, "loss", None), Tensor):
            outputs.loss = self.add_balance_loss(outputs.loss, share)
        elif isinstance(outputs, tuple) and labels is not None:
            outputs = (self.add_balance_loss(outputs[0], share), *outputs[1:])
        return outputs

    def add_balance_loss(self, loss: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """`loss` plus `share` times the balance loss of the last forward pass, for a loss computed outside the model.

        Returns `loss` itself where there is none to add, or where the model has added it already.
        """
        return self.balance.attach(loss, share)

    def _check_merge_allowed(self) -> NoReturn:
        MolaLayer.merge(self)

    @classmethod
    def _remap_adapter_state_dict_for_load(
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


def _is_linear(module: nn.Module) -> bool:
    """Linear layers of torch and of the quantisation libraries, which all name their two sizes, and GPT-2's."""
    return isinstance(module, nn.Linear | Conv1D) or (
        hasattr(module, "in_features") and hasattr(module, "out_features")
    )
