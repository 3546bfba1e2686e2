"""metarun: the experiment runner for meta-learning and multi-task learning in PyTorch."""

__version__ = "0.1.0"
