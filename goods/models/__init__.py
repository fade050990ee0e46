"""Things with weights: encoders of photos and texts, heads on top of them, what of them is tuned, embeddings, TF-IDF.

May know the data's datasets; knows no fold, no run and no training.
"""
