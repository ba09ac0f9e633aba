"""How well it learns and what a round costs, measured so that anyone can again."""
