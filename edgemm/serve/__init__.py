"""The tasks of a bundle behind the addresses that OpenAI's clients call."""
