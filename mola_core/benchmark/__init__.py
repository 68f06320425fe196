"""What MoLA and the harness cost: ratios of medians, measured in one run with the variants in turn.

Not part of the tests: a machine's speed is no property of the code. `mola benchmark` runs it.
"""
