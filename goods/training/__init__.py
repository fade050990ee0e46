"""How a fold learns: its rows, its task, the recipe, the loop, the saved state, predictions, tracking.

May know data and models; a kind's own choices belong in goods/members.
"""
