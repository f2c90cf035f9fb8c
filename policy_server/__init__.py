"""Observation in, action chunk out: the world-action model, its sampler, its engine and its server."""
