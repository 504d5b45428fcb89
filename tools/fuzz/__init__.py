"""Fuzzing a server: mutated images, safetensors files, JSON and HTTP, for as long as it is told.

``python -m tools.fuzz [images|safetensors|json|http|all] --minutes N --seed S``. The module of a kind yields cases from
a random generator and nothing else, so a seed and a number name an input for ever.
"""
