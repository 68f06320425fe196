"""Shapes at many depths, and the parameter counts that the paper prints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mola_core import shapes
from mola_core.errors import MolaError

LLAMA_2_7B = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
BUDGET_20 = ["5555", "8642", "8228", "2468", "2882"]
BUDGET_16 = ["4444", "6532", "6226", "2356", "2662", "10-2-2-2", "2-10-2-2", "2-2-10-2", "2-2-2-10"]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (22, (6, 5, 5, 6)),
        (24, (6, 6, 6, 6)),
        (26, (7, 6, 6, 7)),
        (28, (7, 7, 7, 7)),
        (30, (8, 7, 7, 8)),
        (32, (8, 8, 8, 8)),
    ],
)
def test_quarters_are_a_palindrome(depth, expected):
    assert shapes.quarters(depth) == expected
    assert (
        shapes.experts_per_layer("2468", depth)
        == [2] * expected[0] + [4] * expected[1] + [6] * expected[2] + [8] * expected[3]
    )


@given(st.integers(4, 130), st.lists(st.integers(1, 12), min_size=4, max_size=4))
def test_a_shape_and_its_mirror_cost_the_same(depth, counts):
    experts = shapes.experts_per_layer("-".join(map(str, counts)), depth)
    mirrored = shapes.experts_per_layer("-".join(map(str, counts[::-1])), depth)
    assert len(experts) == depth
    assert mirrored == experts[::-1]
    assert shapes.centre_of_depth(experts) == pytest.approx(1 - shapes.centre_of_depth(mirrored))


def test_names():
    assert shapes.parse_shape("2468") == (2, 4, 6, 8)
    assert shapes.parse_shape("10-2-2-2") == (10, 2, 2, 2)
    assert {shapes.budget(shape) for shape in BUDGET_20} == {20}
    assert {shapes.budget(shape) for shape in BUDGET_16} == {16}


@pytest.mark.parametrize("name", ["246", "24680", "0468", "2-4-6", "a468", "", "2,4,6,8", "2468\n"])
def test_what_is_no_shape_is_an_error(name):
    with pytest.raises(MolaError, match="write one count"):
        shapes.parse_shape(name)


def test_centre_and_spread_tell_the_shapes_apart():
    experts = {shape: shapes.experts_per_layer(shape, 32) for shape in BUDGET_20}
    assert shapes.centre_of_depth(experts["2468"]) > shapes.centre_of_depth(experts["5555"])
    assert shapes.centre_of_depth(experts["5555"]) == pytest.approx(0.5)
    assert shapes.spread(experts["8228"]) > shapes.spread(experts["5555"]) > shapes.spread(experts["2882"])
    assert shapes.centre_of_depth([3, 0, 0, 0]) == 0
    assert shapes.centre_of_depth([0, 0, 3]) == 1


@pytest.mark.parametrize(
    ("names", "count"), [(BUDGET_20, 105_635_840), (["8888"], 169_017_344), (BUDGET_16, 84_508_672)]
)
def test_the_papers_parameter_counts(names, count):
    for name in names:
        assert shapes.mola_parameters(shapes.experts_per_layer(name, 32), LLAMA_2_7B, rank=8) == count


def test_the_papers_lora_count():
    assert shapes.lora_parameters([64] * 32, LLAMA_2_7B) == 159_907_840


def test_the_middle_layer_of_an_odd_depth_is_rounded_up():
    """Between quarters of three and four experts it has four, and between four and three too: mirrors cost the same."""
    assert shapes.experts_per_layer("2348", 5) == [2, 3, 4, 4, 8]
    assert shapes.experts_per_layer("8432", 5) == [8, 4, 4, 3, 2]
