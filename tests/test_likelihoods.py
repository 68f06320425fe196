"""Likelihood of the right option from what the harness stores: positions, letters, labels, and what is refused."""

import numpy as np
import pytest

from mola_core.evaluation.likelihoods import of_samples, right_likelihoods

TABLE = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2], [0.6, 0.3, 0.1]]) - 3
RIGHT = np.array([0, 2, 1, 1])
CORRECT = np.array([1, 1, 1, 0])


@pytest.mark.parametrize(
    "names", [["0", "1", "2"], ["A", "B", "C"], ["no", "yes", "perhaps"], ["1", "2", "3"]]
)
def test_the_right_option_is_found_by_position_letter_or_label(names):
    probability, nats = right_likelihoods([names[place] for place in RIGHT], TABLE.tolist(), CORRECT)
    assert probability == pytest.approx([0.5, 0.7, 0.6, 0.3])
    assert nats == pytest.approx(TABLE[np.arange(4), RIGHT])


def test_options_of_different_numbers():
    rows = [[-1.0, -2.0], [-3.0, -1.0, -2.0]]
    probability, _ = right_likelihoods(["0", "1"], rows, np.array([1, 1]))
    assert probability == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-1) + np.exp(-2))])


def test_samples_of_options_of_generated_text_and_of_neither():
    options = {"target": ["B"], "correct": [1], "loglikelihoods": [[-2.0, -1.0]]}
    assert of_samples(options)[0] == pytest.approx([1 / (1 + np.exp(-1))])
    generated = {"target": ["Answer: B."] * 2, "correct": [1, 0], "loglikelihoods": [[], []]}
    tokens = [np.log([0.5, 1.0, 0.3]), np.log([0.2])]
    found = of_samples(generated | {"answer_tokens": tokens})
    assert found[0] == pytest.approx([0.6, 0.2]) and found[1] == pytest.approx(np.log([0.15, 0.2]))
    assert of_samples(generated) is None and of_samples({"target": ["A"], "correct": [1]}) is None


@pytest.mark.parametrize(
    ("targets", "rows", "correct"),
    [
        (["0", "2", "1", "1"], TABLE.tolist(), 1 - CORRECT),  # the reading contradicts what was judged
        (["w", "x", "y", "z"], TABLE.tolist(), CORRECT),  # a label of its own where the answer was wrong
        (["Answer: A."] * 4, [[]] * 4, CORRECT),  # the protocol generate
        (["Answer: A."] * 4, [None] * 4, CORRECT),
        (["0", "2", "1", "1"], [*TABLE[:3].tolist(), [float("-inf")] * 3], CORRECT),
        (["0", "0"], [[float("nan"), -1.0], [-1.0, -2.0]], np.array([1, 1])),
        (["0", "0"], [[float("inf"), -1.0], [-1.0, -2.0]], np.array([1, 1])),
    ],
)
def test_nothing_is_guessed(targets, rows, correct):
    assert right_likelihoods(targets, rows, correct) is None
