"""Pictures and clips: decoded, kept, laid out side by side, compared, measured."""
