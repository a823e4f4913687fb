"""Where a slider acts: weights over steps, frames and a mask, and the model passes that they need."""
