"""What a model sees, hears and reads: numpy twins of the Hugging Face processors."""
