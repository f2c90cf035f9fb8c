"""Tasks, rollouts, metrics, statistics, run store and reports."""
