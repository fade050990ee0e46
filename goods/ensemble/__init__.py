"""Predictions put together: the folds of a run, runs, labels to look at again, pseudo-labels, the submission.

Reads and writes files of runs; no model is loaded here.
"""
