"""What a run will need and how fast it should be, from its config alone: torch-free closed forms."""
