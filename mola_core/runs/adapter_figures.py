"""Figures of trained adapters, `figures/<name>.svg`: titles and captions; the study's page shows those that were drawn."""

ADAPTER_FIGURES = {
    "knock_out": (
        "Knock-out by depth",
        "Points of accuracy and of the right option's probability that are lost when the adapter is off in a part of the depth, "
        "mean over tasks and seeds, whole range over seeds. Where a line is high the trained model uses its adapter.",
    ),
    "routing": (
        "Router statistics",
        "Experts by the mean weight with which they are chosen, and by how often. No interval.",
    ),
    "routing_load": (
        "Load of the experts",
        "Times that each expert is chosen relative to even use, mean over modules, tasks and seeds.",
    ),
    "redundancy": (
        "Distance between experts",
        "Mean Frobenius norm of the difference between two experts of a layer.",
    ),
    "redundancy_relative": (
        "Relative distance between experts",
        "The same divided by the experts' own norm.",
    ),
    "layer_quality": (
        "Quality of the base model's layers",
        "PL_Alpha_Hill of the base model's layers beside the distance between experts.",
    ),
}
