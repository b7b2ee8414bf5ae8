"""Convolutions by oneDNN on the CPU: one folder, which nothing but `models/layers.py` imports."""
