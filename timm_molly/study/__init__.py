"""Studies: a grid of recipes x {without, with molly} x seeds, trained by train.py and measured: `study.study`."""

# Exit codes of the process that measures a run: its checkpoint cannot be loaded, or its weights are not finite.
UNREADABLE, NOT_FINITE = 3, 4
