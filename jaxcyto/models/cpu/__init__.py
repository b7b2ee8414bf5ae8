"""Run convolutions in oneDNN on the CPU. Only `models/layers.py` imports this package."""
