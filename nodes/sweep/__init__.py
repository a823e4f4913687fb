"""Many strengths in one queue, and what is made of their clips: grid, player, comparison, response."""
