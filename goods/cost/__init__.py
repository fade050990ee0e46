"""Memory, time and disk that a run will take, known before it: footprint.py counts a step, plan.py says what it means.

Reads parameters, a model's config.json, how many rows the tables have, their further columns and files of vectors;
loads no weights and opens no photo.
"""
