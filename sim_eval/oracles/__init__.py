"""Scripted policies with privileged sight: they prove that a task can be solved as its contract says."""
