"""Train an adapter or a whole model with the Hugging Face Trainer."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from mola_core.distributed import from_main, is_main, wait_for_all, world_size
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import read_json, remove, write_json, write_text
from mola_core.methods.registry import is_resumable
from mola_core.models.attention import window
from mola_core.models.kernels import tell_slow_bf16
from mola_core.models.memory import peak_memory
from mola_core.models.precision import frozen_in
from mola_core.models.tokens import Encoded
from mola_core.training.batches import Collator, LengthGrouped, Packer, first_micro_batches, unasked
from mola_core.training.update_size import UpdateSize
from mola_core.training.variants import (
    RankAllocation,
    allocates_ranks,
    loraplus_optimizer,
    regulariser_shared,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mola_core.study.sections import TrainingSettings

TOLD_EVERY = 60
"""Seconds between two lines of progress."""
MARKER = "complete.json"
"""Written into a checkpoint after everything else: a checkpoint without it was cut short and is not resumed."""


GROWING_LOG = "train.jsonl"
"""In the folder of checkpoints: the losses so far, a JSON object a line."""


class Progress(TrainerCallback):
    """Reports steps, loss, tokens/s and time left; asks for a checkpoint whenever one is due."""

    def __init__(
        self,
        settings: TrainingSettings,
        seconds_before: float,
        sampler: LengthGrouped,
        label: str,
        deadline: float | None,
        keep: Callable[[int], None] | None,
        log: Path,
        checkpoints: bool = True,
    ) -> None:
        self.checkpoints = checkpoints
        self.settings = settings
        self.sampler = sampler
        self.label = label
        self.deadline = deadline
        self.keep = keep
        self.log = log
        self.logged = 0
        self.started = time.monotonic() - seconds_before
        self.saved = time.monotonic()
        self.spoken = -math.inf
        self.out_of_time = False
        self.diverged = False

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.sampler) // self.settings.batch_size)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a restart included."""
        return time.monotonic() - self.started

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # accelerate does not hand the epoch to the sampler of a resumed, partly skipped epoch.
        self.sampler.set_epoch(state.global_step // self.steps_per_epoch)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Before a checkpoint is asked for: whoever resumes after this epoch finds its weights.
        epoch, rest = divmod(state.global_step, self.steps_per_epoch)
        if self.keep and rest == 0 and epoch in self.settings.candidates:
            self.keep(epoch)
        save, stop = from_main(self._due)
        if save:
            control.should_save = True
            self.saved = time.monotonic()
        if stop and state.global_step < state.max_steps:
            control.should_training_stop = self.out_of_time = True
            control.should_save = self.checkpoints

    def _due(self) -> tuple[bool, bool]:
        """Whether it is time for a checkpoint, and to stop."""
        save = time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes
        return save and self.checkpoints, bool(self.deadline and time.time() > self.deadline)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wait_for_all()  # each process adds the state of its random numbers
        if is_main():
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / MARKER, {"step": state.global_step, "seconds": self.seconds})
            # Only now, and so not by `save_total_limit`, which deletes the one before while this one lacks its marker.
            for other in folder.parent.glob("checkpoint-*"):
                if other != folder:
                    remove(other)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        # `logs` is a copy: what shall stand in the checkpoint and the cell's log goes into the history itself.
        tokens = int(state.num_input_tokens_seen)
        state.log_history[-1] |= {"tokens": tokens, "seconds": round(self.seconds, 3)}
        if not math.isfinite(float(logs["loss"])):
            control.should_training_stop = self.diverged = True
        if is_main():
            self._log(state)
        if self.out_of_time or not is_main():
            return  # Who sent SIGTERM may have closed the log; the checkpoint is still to be written.
        last = state.global_step == state.max_steps
        if last or time.monotonic() - self.spoken > TOLD_EVERY:
            self.spoken = time.monotonic()
            left = self.seconds / state.global_step * (state.max_steps - state.global_step)
            print(
                f"{self.label}  step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.4f}  "
                f"{tokens / self.seconds:.0f} tokens/s  {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def _log(self, state: TrainerState) -> None:
        """Bring the growing log up to date; the first time what a checkpoint brought is in it."""
        losses = [entry for entry in state.log_history if "loss" in entry]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a" if self.logged else "w", encoding="utf-8") as file:
            for entry in losses[self.logged :]:
                finite = entry["loss"] if math.isfinite(float(entry["loss"])) else None
                file.write(json.dumps(entry | {"loss": finite, "steps": state.max_steps}) + "\n")
        self.logged = len(losses)


class CellTrainer(Trainer):
    """The Trainer with this project's order of documents (`LengthGrouped`)."""

    def __init__(self, sampler: LengthGrouped, loraplus_ratio: float | None, **kwargs: Any) -> None:
        self.sampler = sampler
        self.loraplus_ratio = loraplus_ratio
        super().__init__(**kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.loraplus_ratio is not None and self.optimizer is None:
            self.optimizer = loraplus_optimizer(self, self.loraplus_ratio)
        return super().create_optimizer(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        return self.sampler


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are deleted."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / MARKER).is_file():
            whole.append((int(checkpoint.name.removeprefix("checkpoint-")), checkpoint))
        else:
            remove(checkpoint)
    return max(whole)[1] if whole else None


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Encoded],
    settings: TrainingSettings,
    seed: int,
    checkpoints: Path,
    label: str = "training",
    deadline: float | None = None,
    keep: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train `model` in place, going on from the last whole checkpoint in `checkpoints` if there is one (methods that are not
    `is_resumable` leave none: they always begin anew).

    `label` begins each line of progress; `deadline` is a time (seconds since 1970) at which training stops;
    `keep` is called with each epoch of `settings.candidates` at its end.
    Returns the record of the training (steps, tokens, seconds, peak memory) and the log, one entry per logged step. A
    training whose loss is no longer finite is ended; its record has `diverged`, and so has that of one with weights that
    are not finite. Raises `MolaError` where the settings leave nothing to train, and `OutOfTime`.
    """
    problem = settings.steps_problem(len(documents))
    if problem:
        raise MolaError(problem)
    steps, steps_per_epoch = settings.steps(len(documents)), -(-len(documents) // settings.batch_size)
    resumable = not isinstance(model, PeftModel) or is_resumable(vars(model.peft_config["default"]))
    checkpoint = None if not resumable else from_main(lambda: last_checkpoint(checkpoints))
    seconds_before = read_json(checkpoint / MARKER)["seconds"] if checkpoint else 0.0
    lengths = [len(document.tokens) for document in documents]
    sampler = LengthGrouped(lengths, settings.batch_size, seed, settings.micro_batch_size * world_size())
    growing = checkpoints / GROWING_LOG
    progress = Progress(settings, seconds_before, sampler, label, deadline, keep, growing, resumable)
    on_gpu = torch.cuda.is_available()
    # Stages such as instruction tuning put loss on every token, whatever the study's own training does.
    packed = settings.shared_prefix and settings.loss_on == "answer"
    if packed and model.config._attn_implementation != "sdpa":
        raise MolaError(
            "training.shared_prefix: needs a model with PyTorch's own attention (sdpa); turn it off"
        )
    if packed and max(lengths) > (seen := window(model)):
        raise MolaError(
            f"training.shared_prefix: layers of this model see {seen} positions back, a document has {max(lengths)} tokens; "
            "turn it off, or lower training.max_length"
            if seen
            else "training.shared_prefix: this model has layers that are no attention; turn it off"
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch_size,
        # The batch, its documents and their order do not depend on the number of processes (`LengthGrouped`).
        gradient_accumulation_steps=settings.batch_size // (settings.micro_batch_size * world_size()),
        learning_rate=settings.learning_rate,
        # What transformers calls `constant` knows no warm-up.
        lr_scheduler_type="constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        logging_steps=max(1, steps // 200),
        logging_nan_inf_filter=False,  # it would show a loss that is not a number as the mean of those before
        include_num_input_tokens_seen="all" if packed else "non_padding",
        save_strategy="no",
        seed=seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=list(settings.report_to) or "none",
        run_name=label,
        disable_tqdm=True,
        log_level="error",
        full_determinism=settings.deterministic,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = (
            1  # the Trainer would put a micro-batch on every card it sees, and so enlarge the batch
        )
    sizes = UpdateSize(
        first_micro_batches(
            documents,
            settings.batch_size,
            settings.micro_batch_size,
            seed,
            tokenizer.pad_token_id,
            settings.loss_on,
            1,
        )[0],
        checkpoints,
    )
    # Dropout draws from the global generators: their state must not depend on what was initialised before.
    set_seed(seed)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = CellTrainer(
        sampler,
        getattr(settings, "loraplus_ratio", None),
        model=model,
        args=arguments,
        train_dataset=[*documents, *[unasked(documents)] * sampler.filling],
        data_collator=Packer() if packed else Collator(tokenizer.pad_token_id, settings.loss_on),
        callbacks=[progress, sizes, *([RankAllocation(model.base_model)] if allocates_ranks(model) else [])],
    )
    trainer.remove_callback(PrinterCallback)
    model.config.use_cache = False
    if settings.precision == "fp16" and model.device.type == "cpu":
        raise MolaError("training.precision: fp16 needs a GPU; on a CPU use fp32 or bf16")
    tell_slow_bf16(settings.precision)
    with _stopped_by_signals(progress), frozen_in(model, settings.precision), regulariser_shared(model):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if progress.out_of_time:
        raise OutOfTime(f"{label}: stopped at step {trainer.state.global_step} of {steps}")
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    final_loss: float | None = round(float(log[-1]["loss"]), 6)
    reason = "the loss is not finite" if progress.diverged else not_finite(model)
    if reason:
        print(f"{label}: diverged by step {trainer.state.global_step} of {steps}: {reason}", file=sys.stderr)
    if progress.diverged:
        log[-1]["loss"] = final_loss = None
    tokens = int(trainer.state.num_input_tokens_seen)
    return {
        "documents": len(documents),
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.global_step / steps_per_epoch, 4),
        "tokens": tokens,
        "processes": world_size(),
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(tokens / progress.seconds, 2),
        "final_loss": final_loss,
        **({"diverged": {"step": trainer.state.global_step, "reason": reason}} if reason else {}),
        **sizes.record(),
        "peak_memory_bytes": peak_memory(),
        "resumed": checkpoint is not None,
    }, log


def untrained(documents: int, parent: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The record of a training that could not begin, since what it goes on from, of which `parent` is the record, has
    diverged."""
    return {
        **{name: parent[name] for name in ("trainable_parameters", "base_parameters", "experts")},
        **dict.fromkeys(("steps", "tokens", "peak_memory_bytes"), 0),
        **dict.fromkeys(("epochs", "seconds", "tokens_per_second"), 0.0),
        "final_loss": None,
        "documents": documents,
        "processes": world_size(),
        "resumed": False,
        "diverged": {"step": 0, "reason": reason},
    }


def not_finite(model: Any) -> str | None:
    """The first trained parameter that is not finite, in words."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            return f"{name} is not finite"
    return None


@contextlib.contextmanager
def _stopped_by_signals(progress: Progress) -> Iterator[None]:
    """SIGTERM (a cluster's time limit, a drained node) and Ctrl-C end the training after its current step, with a
    checkpoint; a second Ctrl-C ends it at once. Where Ctrl-C is ignored, as in a worker, it stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        progress.deadline = 1.0
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def write_log(path: Path, log: Sequence[dict[str, Any]]) -> None:
    """One JSON object per logged step."""
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in log))
