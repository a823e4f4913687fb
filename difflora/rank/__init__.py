"""The best approximation at a small rank, and what can be measured on the way to it."""
