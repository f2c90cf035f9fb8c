"""The low-latency runtime around the network."""
