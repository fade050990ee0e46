"""The kinds of model, one file each, and their registry. Light to import: no torch before something is fitted."""
