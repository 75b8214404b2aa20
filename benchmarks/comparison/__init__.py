"""The parts of ``benchmarks/cnn_vs_vit.py``: one declared budget, many models, one page of results."""
