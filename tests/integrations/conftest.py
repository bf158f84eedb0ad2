"""Integrations with transformers, torch.distributed and quantizers."""

# Run by hand: they need what is no dependency of this package.
collect_ignore = ["deepspeed_zero.py", "quantized_models.py"]
