"""What notebooks say of their outputs: tables that can be read, and sentences made from the numbers.

shown.py puts them on the page. of_goods.py reads out what is found in tables and photos, of_runs.py what a training or
an ensemble has come to, of_products.py what is said of single products: embeddings, predictions, rewritten texts. A
sentence's function takes the numbers that the output beside it shows, and no run: it returns text.
"""
