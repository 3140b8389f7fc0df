"""Portable graph → the form that a runtime runs fastest. Written when a decoder is loaded, kept in the cache."""
