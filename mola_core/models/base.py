"""The base model of a study, loaded once in a process and lent to one adapter after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mola_core.distributed import from_main, is_main, world_size
from mola_core.errors import MolaError
from mola_core.files import read_json
from mola_core.models.check import refuse_looking_ahead, refuse_padded
from mola_core.models.kernels import Setting, attention_heads, choose, follow, linear_sizes
from mola_core.models.loading import (
    load_model,
    load_tokenizer,
    model_identity,
    verify_model,
)
from mola_core.models.weights import load_adapter, unload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mola_core.study.sections import ModelSource


class Base:
    """A prepared base model; its files are compared with their hashes when it is first used."""

    def __init__(self, folder: Path, source: ModelSource, threads: int, matmul: Setting = "default") -> None:
        self.folder = folder
        self.source = source
        self.threads = max(1, threads // world_size())
        self.matmul = matmul
        self._settled = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, on the GPU where there is one. Raises `MolaError` where the folder holds another or a damaged one."""
        verify_model(self.folder)
        if read_json(self.folder / "model.json")["identity"] != model_identity(self.source):
            raise MolaError(
                f"{self.folder}: not the model {self.source.name} of the study; prepare that with `mola model`"
            )
        model = self.load(self.folder)
        refuse_looking_ahead(model, f"model {self.source.name}")
        refuse_padded(model, f"model {self.source.name}")
        return model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    def load(self, folder: Path) -> PreTrainedModel:
        """The model in `folder` (this one, or a fully tuned one), as the study wants it to be held."""
        source = self.source
        model = load_model(folder, dtype=source.dtype, quantization=source.quantization)
        self.settle(model)
        return model.to("cuda") if torch.cuda.is_available() and source.quantization is None else model

    def settle(self, model: PreTrainedModel) -> None:
        """Set this process's threads and kernels, once, for `model`; alike in all processes that train a cell together."""
        if self._settled:
            return
        self._settled = True
        if torch.get_num_threads() != self.threads and not torch.cuda.is_available():
            torch.set_num_threads(self.threads)
        record = from_main(lambda: choose(self.matmul, linear_sizes(model), attention_heads(model)))
        if not is_main():
            follow(record)

    def lend(self) -> PreTrainedModel:
        """The model to put an adapter on; forgotten until `take_back`, since a failure would leave half of one."""
        model = self.model
        self.forget()
        return model

    def forget(self) -> None:
        """Give the model's memory back, unless someone else still holds it."""
        self.__dict__.pop("model", None)

    def take_back(self, adapted: Any) -> None:
        """Take the adapter off again, for the next cell; where that cannot be done the model will be loaded anew."""
        self.forget()
        base = unload(adapted)
        # bitsandbytes repacks the weights of a model that is evaluated on a CPU with bf16, and rounds their scales.
        rounded = self.source.quantization == "4bit" and not torch.cuda.is_available()
        if base is not None and not rounded:
            self.__dict__["model"] = base

    @contextlib.contextmanager
    def opened(self, weights: Path | None, whole: bool = False) -> Iterator[Any]:
        """The model with the adapter in `weights` during the block; the bare one for None, a fully tuned one if `whole`."""
        if weights is None:
            yield self.model
            return
        if whole:
            self.forget()
            model: Any = self.load(weights)
        else:
            model = load_adapter(self.lend(), weights)
        try:
            yield model
        finally:
            self.take_back(model)
