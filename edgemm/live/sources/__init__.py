"""Where frames and sound come from: one thin file a kind, and one registry of them."""
