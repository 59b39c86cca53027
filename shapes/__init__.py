"""A world of coloured shapes to learn from: pictures, captions, and what was learnt."""
