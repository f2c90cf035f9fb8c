"""What a robot is: one TOML contract per embodiment, loaded to frozen dataclasses, hashed and checked."""
