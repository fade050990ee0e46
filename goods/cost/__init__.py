"""Memory, time and disk that a run will take, known before it: footprint.py counts a step, plan.py says what it means.

Reads parameters, a model's config.json and how many rows the tables have; loads no weights and opens no photo.
"""
