"""A short cut of `make peft-suite`: PEFT's own tests of two cases with MoLA in the place of LoRA."""

import re
import subprocess

import pytest
from peft_suite.__main__ import fetch, run


def test_short_cut_of_pefts_own_tests():
    try:
        folder = fetch()
    except subprocess.CalledProcessError:
        pytest.skip("the package index, which has PEFT's tests, cannot be reached")
    tests = ["tests/test_custom_models.py", "tests/test_low_level_api.py"]
    done = run(
        folder, *tests, "-k", "(MoLA and rank) or TestPeftStateDict or mixed_adapter_batches", capture=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50, done.stdout[-4000:]
