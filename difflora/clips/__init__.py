"""Pictures and clips: reading, storing, laying out side by side, comparing and measuring them."""
