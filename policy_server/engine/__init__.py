"""The low-latency runtime: static buffers, whole-call graphs, guidance plans, parallelism, quantization."""
