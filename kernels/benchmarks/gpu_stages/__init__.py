"""What `gpu_check.py` runs: stages that prove something, and stages that measure."""
