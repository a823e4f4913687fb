"""Where a slider acts: weights over steps, frames and a mask, and the passes of the model that they need."""
