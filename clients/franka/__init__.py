"""A Franka arm driven by a policy: chunks in, bounded motion out. Nothing here moves a robot on import."""
