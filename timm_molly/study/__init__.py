"""Studies: a grid of recipes x {without, with molly} x seeds, trained by train.py and measured: `study.study`."""
