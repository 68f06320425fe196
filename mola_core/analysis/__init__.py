"""From cells to tables, figures and answers, without a model."""
