"""Simulators behind the Task protocol, one module each, imported only when a task of theirs is made."""
