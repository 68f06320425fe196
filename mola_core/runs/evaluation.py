"""Evaluating a cell: scores, knock-out and router statistics of a trained adapter, and the manifest."""

from __future__ import annotations

import contextlib
import datetime
import math
import sys
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError
from mola_core.files import atomic_write, locked, read_json, sha256_file, write_text
from mola_core.records import digest, write_record
from mola_core.runs import recovery
from mola_core.runs.key import Parts, evaluation_parts
from mola_core.runs.layout import EVALUATED, KNOCK_OUT, ROUTING
from mola_core.runs.opened import OpenStudy, environment
from mola_core.runs.progress import failure_noted
from mola_core.runs.selection import compare_candidates
from mola_core.runs.state import standing
from mola_core.study.study import Cell

if TYPE_CHECKING:
    import pandas as pd

    from mola_core.runs.records import Manifest, TrainingRecord


class EvaluationRunner(OpenStudy):
    """Evaluates a study's cells, one after another."""

    @failure_noted
    def evaluate(self, cell: Cell) -> None:
        """Evaluate the cell, unless its scores are there; its manifest, written last, says that the cell is complete."""
        self._prepared(cell)
        key = self._keys(cell).evaluation
        with locked(self.layout.lock(key)) if key else contextlib.nullcontext():
            found = standing(self.layout, cell)
            if found.evaluated:
                print(f"{cell.path}: already evaluated", file=sys.stderr)
            else:
                self._evaluate(cell)
            write_text(self.layout.cell(cell) / EVALUATED, f"{found.keys.evaluation}\n")

    def _evaluate(self, cell: Cell) -> None:
        import pandas as pd

        from mola_core.runs.card import write_card

        study, folder = self.study, self.layout.cell(cell)
        tasks = study.evaluated_on(cell)
        training = None if self._is_base(cell) else self._training_record(cell)
        weights = None if self._is_base(cell) else self.layout.weights(cell)
        parts = evaluation_parts(self.layout, cell, training["key"] if training else None)
        if weights and recovery.diverged(weights):
            outcomes = {name: self._unanswered(name) for name in tasks}
        else:
            with self.base.opened(weights, self._is_full(cell)) as model:
                self._check_weights_act(cell, model)
                outcomes = {name: self._evaluated(model, name) for name in tasks}
        for name, (frame, _) in outcomes.items():
            columns = frame.columns.intersection(["loglikelihoods", "answer_tokens"])
            if all(math.isfinite(value) for name in columns for values in frame[name] for value in values):
                continue
            if self._is_base(cell):
                raise MolaError(
                    f"cell {cell.path}: log-likelihoods of {name} are not finite; are the model's weights?"
                )
            print(f"{cell.path}: log-likelihoods of {name} are not finite: no answers", file=sys.stderr)
            outcomes[name] = self._unanswered(name)
        if tasks == [cell.task]:
            samples, record = outcomes[cell.task]
        else:
            samples = pd.concat(
                [frame.assign(task=name) for name, (frame, _) in outcomes.items()], ignore_index=True
            )
            record = {"tasks": {name: record for name, (_, record) in outcomes.items()}}
        if study.evaluation.every_epoch and training and "epoch_choice" in training:
            record["epoch_choice"] = compare_candidates(
                self._scorer(cell, validated=False),
                training["epoch_choice"],
                record["accuracy"],
                self.layout.candidates(cell),
            )
        if parts is None or parts != evaluation_parts(
            self.layout, cell, training["key"] if training else None
        ):
            raise MolaError(
                f"cell {cell.path}: its examples changed while it was evaluated; evaluate it again"
            )
        for name in (
            KNOCK_OUT,
            ROUTING,
        ):  # of other documents or other code: they are no part of these scores
            (folder / name).unlink(missing_ok=True)
        with atomic_write(folder / "samples.parquet") as temporary:
            samples.to_parquet(temporary, index=False)
        if training is not None:
            write_card(self.layout, cell, {**training}, record)
        write_record(folder / "manifest.json", self._manifest(cell, training, record, parts))

    def _unanswered(self, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        from mola_core.evaluation.unanswered import unanswered
        from mola_core.tasks.loading import golds_in_prompts

        part, documents = self.study.scored_part, self.study.evaluation.documents
        examples = self._examples(name, part, documents)
        task = self._task(name, validated=part == "validation")
        return unanswered(examples, self.base.tokenizer, golds_in_prompts(task, documents))

    def _check_weights_act(self, cell: Cell, model: Any) -> None:
        from mola_core.evaluation.harness import check_adapter_acts
        from mola_core.models.weights import check_model_differs

        if self._is_full(cell):
            check_model_differs(self.layout.weights(cell), self.layout.model)
        elif not self._is_base(cell):
            [example] = self._examples(self.study.trained_on(cell), "train", 1)
            check_adapter_acts(model, self.base.tokenizer, example.prompt + example.completion)

    def knock_out(self, cell: Cell, by: str = "quarter") -> None:
        """Write the cell's knockout.csv: its scores with the adapter off in no layer, in each quarter (or layer), in all.

        A training that diverged has no rows. Raises `MolaError` where the cell is not trained or adapts no layer.
        """
        import pandas as pd

        from mola_core.evaluation.knock_out import COLUMNS, parts, row, switched_off

        self._prepared(cell)
        self._training_record(cell)
        rows = []
        if not recovery.diverged(self.layout.weights(cell)):
            with self.base.opened(self.layout.weights(cell), self._is_full(cell)) as model:
                depth = model.config.get_text_config().num_hidden_layers
                for part, layers in parts(depth, by).items():
                    with switched_off(model, layers) as modules:
                        if part == "all" and not modules:
                            raise MolaError(
                                f"cell {cell.path}: its method adapts no layer that could be switched off"
                            )
                        rows.append(row(part, layers, self._evaluated(model, cell.task)[0]))
        with atomic_write(self.layout.cell(cell) / KNOCK_OUT) as temporary:
            pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(temporary, index=False)

    def count_routing(self, cell: Cell) -> None:
        """Write the cell's routing.csv: its routing on the prompts of the documents that it is evaluated on.

        A training that diverged has no rows. Raises `MolaError` where the cell has no router or is not trained.
        """
        import pandas as pd

        from mola_core.evaluation.router_counts import COLUMNS, routing_frame
        from mola_core.models.loading import positions
        from mola_core.models.tokens import encode

        self._prepared(cell)
        self._training_record(cell)
        if recovery.diverged(self.layout.weights(cell)):
            with atomic_write(self.layout.cell(cell) / ROUTING) as temporary:
                pd.DataFrame(columns=list(COLUMNS)).to_csv(temporary, index=False)
            return
        settings, tokenizer = self.study.evaluation, self.base.tokenizer
        found = [
            example
            for name in self.study.evaluated_on(cell)
            for example in self._examples(name, "evaluation", settings.documents)
        ]
        with self.base.opened(self.layout.weights(cell), self._is_full(cell)) as model:
            limit = positions(self.layout.model)
            encoded = [encode(tokenizer, one.prompt, one.completion, limit) for one in found]
            documents = [document.tokens[: document.prompt_length] for document in encoded]
            frame = routing_frame(model, documents, settings.batch_size, tokenizer.pad_token_id)
        with atomic_write(self.layout.cell(cell) / ROUTING) as temporary:
            frame.to_csv(temporary, index=False)

    def _manifest(
        self, cell: Cell, training: TrainingRecord | None, evaluation: dict[str, Any], parts: Parts
    ) -> Manifest:
        study, layout = self.study, self.layout
        parent = study.parent(cell)
        tasks = study.evaluated_on(cell)
        trained = [] if training is None else [study.trained_on(cell)]
        rows = list(dict.fromkeys([*tasks, *trained]))
        return {
            "study": study.name,
            "model": study.model.name,
            "task": cell.task,
            "method": cell.method,
            "seed": cell.seed,
            "training_key": training["key"] if training else None,
            "evaluation_key": digest(parts),
            "parts": parts,
            "parent": parent.path if parent else None,
            "stand_in": study.stand_in,
            "model_files": read_json(layout.model / "model.json"),
            "data_files": {name: read_json(layout.data(name) / "fingerprint.json") for name in rows},
            "examples": {name: read_json(layout.examples(name) / "examples.json") for name in rows},
            "training": training,
            "evaluation": evaluation | {**environment()},
            "samples_sha256": sha256_file(layout.cell(cell) / "samples.parquet"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
