"""Policies inside other people's loops: openpi brokers, gymnasium environments, RoboLab."""
