"""How a component gets its precision."""
