"""The project's package. Notebooks see it through goods_utils; imports inside it point down only.

tests/test_rooms.py reads the order of the rooms and holds it.
"""
