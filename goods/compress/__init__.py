"""Texts rewritten short by a language model, a local one or one behind an API; for compress_text.ipynb alone.

`job.py` is the way in: compress_goods. `params.py` holds its parameters and the instruction, `local.py` and `api.py`
ask a model, `answers.py` keeps what it said. May use the tables' readers and the choice of a device; knows no fold and
no training.
"""
