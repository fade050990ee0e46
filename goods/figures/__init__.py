"""Data in, matplotlib Figure out; nothing here reads a run or a model. style.py holds what all figures share."""
