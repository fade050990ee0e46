"""Data in (DataFrames, arrays, lists), a matplotlib Figure out; nothing here reads a run or a model.

Every title states what the figure shows, computed from the data. A returned Figure is already closed for pyplot: a
notebook shows it once, as the last expression of a cell, and figures do not pile up. Class and product names may hold
anything: `$`, emoji, scripts the fonts lack. style.py holds what all figures share, and save_figure, which keeps one
for report.html; a new figure is a function under @styled that ends with titled(...).
"""
