"""Federated GRPO on LoRA adapters with per-unit differential privacy."""

__version__ = "0.1.0"
