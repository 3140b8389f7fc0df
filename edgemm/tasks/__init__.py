"""One file a task: what to feed the graphs of a bundle, and what their outputs mean."""
