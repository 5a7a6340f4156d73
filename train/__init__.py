"""The trainer: recipes, the 3-D encoder and its two objectives, and one loop that runs them on any device."""
