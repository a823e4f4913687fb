"""The best approximation at a small rank, and what can be measured along the way."""
