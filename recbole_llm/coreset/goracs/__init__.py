"""Optimal-transport coresets (GORACS, arXiv 2506.04015): start, exchanges, pools and the selector."""
