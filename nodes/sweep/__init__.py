"""Many strengths in one queue, and what their clips are used for: grid, player, comparison, response."""
