"""Flow-matching sampling: schedule, UniPC, guidance, noise."""
