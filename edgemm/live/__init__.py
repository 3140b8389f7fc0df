"""The live pipeline: sources on one clock, a window over them, models, and sinks."""
