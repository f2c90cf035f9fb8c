"""The websocket server. Never imports torch."""
