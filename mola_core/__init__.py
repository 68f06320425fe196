"""MoLA reproduced and benchmarked: layer-wise LoRA experts, their baselines and a verdict.

Importing this package registers the `MOLA` tuner with PEFT as soon as PEFT itself is imported.
"""
