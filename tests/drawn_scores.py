"""Score matrices drawn from a simulation, for tests of the verdict."""

import numpy as np
import pandas as pd

from mola_core.analysis.calibration.simulation import Scenario
from mola_core.study.verdict import VerdictSettings

FAST = VerdictSettings(resamples=200)
THREE = {"documents": (400, 300, 200), "accuracy": (0.8, 0.7, 0.6), "run_noise": (0.03, 0.03, 0.06)}


def draw(seed: int = 0, **stated) -> pd.DataFrame:
    return Scenario("test", **{**THREE, **stated}).frame(np.random.default_rng(seed))


def questions(verdict) -> dict:
    return {question["id"]: question for question in verdict["questions"]}


def with_likelihood(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    noise = np.random.default_rng(seed).random(len(rows))
    return rows.assign(likelihood=np.where(rows.correct == 1, 0.5 + 0.5 * noise, 0.5 * noise))


def named(rows: pd.DataFrame, **names: str) -> pd.DataFrame:
    known = {f"mola-{shape}": name for shape, name in zip(("2468", "8642"), names.values(), strict=True)}
    return rows[rows.method.isin(known)].assign(method=rows.method.map(known))
