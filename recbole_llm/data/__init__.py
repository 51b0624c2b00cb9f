"""From RecBole's data sets to rows: the reader of atomic files, the item catalogue, row subsets, loaders.

Files are read without RecBole; modules that use RecBole import :mod:`recbole_llm.data.patched` first of all.
"""
