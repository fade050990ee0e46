"""Texts rewritten short by a language model, for compress_text.ipynb alone."""
