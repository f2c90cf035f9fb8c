"""The Cosmos 3 network: config, transformer, positions, tokens, VAE, prompt, checkpoint formats."""
