"""Corruptions of images: their names, the strengths of the published sets, and the transforms."""
