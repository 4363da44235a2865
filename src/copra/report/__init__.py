"""Tables and figures from the evaluations of a run."""
