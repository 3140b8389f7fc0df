"""The device half: engines behind two small protocols."""
