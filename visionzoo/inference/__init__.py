"""Load what was trained and ask it questions. Needs neither Lightning nor a task."""
