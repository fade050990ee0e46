"""Things with weights: encoders of photo, of text, of both, heads on top of them, what of them is tuned, their embeddings, TF-IDF.

May know the data's datasets; knows no fold, no run and no training.
"""
