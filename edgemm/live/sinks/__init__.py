"""Where results go: each sink runs on a thread of its own, behind a bounded queue."""
