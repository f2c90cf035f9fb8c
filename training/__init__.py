"""The post-training recipe and demonstration generation behind the shipped checkpoints."""
