"""From a folder to checked products: tables, texts, photos, folds, and the datasets that training draws from.

May know tables and photos, nothing about models. photos.py is the one reader of photos, table_files.py of tables,
texts.py the one cleaner of texts.
"""
