"""From score matrices to tables, figures and the verdict. Reads files; needs no model and no torch."""
